"""The .tflite files for devices: conversion, quality checks and a runner without TensorFlow."""
