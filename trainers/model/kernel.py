"""The LSTM's recurrence, its products and Adam as compiled ops (lstm.cc), 1.5 to 3 times as fast as a graph on a CPU.

It is compiled for the processor on first use, in a few seconds, and kept beside the environment's packages. Without a
compiler, or without permission to write there, recurrence.py's graph loop and Keras's Adam are used instead.

Legend: T time steps, B lanes, H units, G gate columns.
"""

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from common import console
from common.files import whole_file
from common.machine import processor
from trainers.model.cells import State

SOURCE = Path(__file__).with_name("lstm.cc")
BUILT = Path(sys.prefix, "share", "unreasonable-rnn")


@functools.cache
def ops() -> Any:
    """Return the compiled ops as a module. None on a GPU, and, with a note, where they cannot be built."""
    if tf.config.list_logical_devices("GPU"):
        return None
    try:
        return tf.load_op_library(str(_build()))
    except (OSError, subprocess.CalledProcessError, tf.errors.OpError) as error:
        reason = error.stderr.strip().splitlines()[-1:] if isinstance(error, subprocess.CalledProcessError) else [error]
        console.note(
            f"an LSTM trains at about half the speed: {SOURCE.name} cannot be compiled ({', '.join(map(str, reason))})"
        )
        return None


def multiplies(dtype: tf.DType) -> bool:
    """Check whether to multiply over a window here. Float16 is for GPUs, and TensorFlow is faster for float32 where it
    multiplies by oneDNN with AVX-512, which it does on processors with VNNI."""
    if not ops() or dtype == tf.float16:
        return False
    return dtype == tf.bfloat16 or "avx512_vnni" not in processor()[1]


def _build() -> Path:
    """Compile the ops for this processor and this TensorFlow, unless they are compiled already."""
    flags = ["-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC"]
    flags += [
        flag for flag in tf.sysconfig.get_compile_flags() if flag.startswith("-I")
    ] + tf.sysconfig.get_link_flags()
    name, instructions = processor()
    key = [SOURCE.read_text(encoding="utf-8"), tf.__version__, name, *sorted(instructions), *flags]
    library = BUILT / f"lstm-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        with whole_file(library) as partial:
            command = [os.environ.get("CXX", "c++"), str(SOURCE), "-o", str(partial), *flags]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def lstm(
    z_TxBxG: tf.Tensor,
    before: State,
    recurrent_HxG: tf.Tensor,
    keep_TxBx1: tf.Tensor | None,
    dtype: tf.DType = tf.float32,
) -> tuple[tf.Tensor, State]:
    """Run `recurrence.loop` of an LSTM. Arguments and results are the same, in bfloat16 to its rounding."""
    T, B, G = tf.shape(z_TxBxG)[0], tf.shape(z_TxBxG)[1], z_TxBxG.shape[2]
    keep_TxB = tf.ones([T, B]) if keep_TxBx1 is None else keep_TxBx1[..., 0]
    rounded = dtype == tf.bfloat16

    @tf.custom_gradient
    def window(
        z_TxBxG: tf.Tensor, h_BxH: tf.Tensor, c_BxH: tf.Tensor, r_HxG: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], Callable[..., tuple[tf.Tensor, ...]]]:
        h_T1xBxH, c_TxBxH, gates_TxBxG = ops().char_rnn_lstm(z_TxBxG, r_HxG, h_BxH, c_BxH, keep_TxB, rounded)

        def grad(*dafter: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dz_TxBxG, *dbefore = ops().char_rnn_lstm_grad(
                r_HxG, c_BxH, keep_TxB, c_TxBxH, gates_TxBxG, *dafter, rounded
            )
            h_TxBxH = h_T1xBxH[:-1] if keep_TxBx1 is None else h_T1xBxH[:-1] * keep_TxBx1
            h_NxH, dz_NxG = tf.reshape(h_TxBxH, [-1, G // 4]), tf.reshape(dz_TxBxG, [-1, G])
            if multiplies(dtype):
                dr_HxG = ops().char_rnn_product_transposed_a(h_NxH, dz_NxG, rounded)
            else:
                dr_HxG = tf.matmul(h_NxH, dz_NxG, transpose_a=True)
            return _shaped([dz_TxBxG, *dbefore, dr_HxG], like=[z_TxBxG, h_BxH, c_BxH, r_HxG])

        return (h_T1xBxH[1:], h_T1xBxH[-1], c_TxBxH[-1]), grad

    h_TxBxH, h_BxH, c_BxH = window(z_TxBxG, *before, recurrent_HxG)
    h_TxBxH.set_shape([*z_TxBxG.shape[:2], G // 4])
    for x_BxH in (h_BxH, c_BxH):
        x_BxH.set_shape([z_TxBxG.shape[1], G // 4])
    return h_TxBxH, (h_BxH, c_BxH)


def matmul(a: tf.Tensor, b: tf.Tensor, dtype: tf.DType = tf.float32, transpose_b: bool = False) -> tf.Tensor:
    """Multiply two float32 matrices in `dtype` on one core, where `multiplies` at up to twice TensorFlow's speed."""
    rounded = dtype == tf.bfloat16
    names = ("char_rnn_product", "char_rnn_product_transposed_a", "char_rnn_product_transposed_b")
    ab, atb, abt = (functools.partial(getattr(ops(), name), rounded=rounded) for name in names)

    @tf.custom_gradient
    def product(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
        c_MxN = (abt if transpose_b else ab)(a, b)
        c_MxN.set_shape([a.shape[0], b.shape[0 if transpose_b else 1]])

        def grad(dc_MxN: tf.Tensor) -> tuple[tf.Tensor, ...]:
            if transpose_b:
                return _shaped([ab(dc_MxN, b), atb(dc_MxN, a)], like=[a, b])
            return _shaped([abt(dc_MxN, b), atb(a, dc_MxN)], like=[a, b])

        return c_MxN, grad

    return product(tf.convert_to_tensor(a), tf.convert_to_tensor(b))


def sum_rows(x_NxK: tf.Tensor, ids_N: tf.Tensor, table_VxK: tf.Tensor) -> tf.Tensor:
    """Sum the float32 rows of each id, into the shape of the table, at several times the speed of
    tf.math.unsorted_segment_sum."""
    sum_VxK = ops().char_rnn_sum_rows(x_NxK, tf.cast(ids_N, tf.int32), table_VxK)
    return _shaped([sum_VxK], like=[table_VxK])[0]


def adam(values: Sequence[tf.Tensor], gradient: tf.Tensor, settings: Sequence[Any]) -> list[tf.Tensor]:
    """Compute a weight and Adam's averages of its gradient and squared gradient after a step, in one pass over memory.

    settings: rate, 1 - beta_1, 1 - beta_2, epsilon.
    """
    flat = [tf.reshape(x, [-1]) for x in (*values, gradient)]
    return [tf.reshape(x, values[0].shape) for x in ops().char_rnn_adam(*flat, tf.stack(settings))]


def _shaped(gradients: list[tf.Tensor], like: list[tf.Tensor]) -> tuple[Any, ...]:
    """Give gradients their static shapes, which the ops do not infer and some of Keras's optimizers need."""
    for gradient, value in zip(gradients, like, strict=True):
        gradient.set_shape(value.shape)
    return tuple(gradients)
