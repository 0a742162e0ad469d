"""The .tflite files for devices: conversion, quality checks and the runner."""
