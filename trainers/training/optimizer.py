"""The optimizer, and its learning rate at each step."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from trainers.config import TrainConfig
from trainers.model import kernel, recurrence

DECAY_AFTER = 10  # epochs at the full rate under the char-rnn schedule, as in char-rnn
MOMENTUM = 0.9  # of sgd


@keras.saving.register_keras_serializable("unreasonable_rnn")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate as a function of the step, counted from 0. It has no state to save.

    total: steps of the run; epoch_steps: steps per epoch.
    """

    def __init__(self, config: TrainConfig, total: int, epoch_steps: int):
        self.config, self.total, self.epoch_steps = config, total, epoch_steps

    def __call__(self, step: Any) -> tf.Tensor:
        config, step = self.config, tf.cast(step, tf.float32)
        peak = max(0, config.warmup - 1)  # the step of the highest rate
        share = tf.clip_by_value((step - peak) / max(1, self.total - 1 - peak), 0.0, 1.0)  # progress from there
        factor: Any = 1.0
        if config.schedule == "exponential":
            factor = config.decay**share
        elif config.schedule == "cosine":
            factor = config.decay + (1 - config.decay) * (1 + tf.cos(share * math.pi)) / 2
        elif config.schedule == "char-rnn":
            epoch = tf.floor((step + 0.5) / self.epoch_steps)  # half a step against rounding at the edge
            factor = config.decay ** tf.maximum(0.0, epoch - DECAY_AFTER + 1)
        if config.warmup:
            factor *= tf.minimum((step + 1) / config.warmup, 1.0)
        return config.learning_rate * factor

    def get_config(self) -> dict[str, Any]:
        return {"config": dataclasses.asdict(self.config), "total": self.total, "epoch_steps": self.epoch_steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LearningRate":
        return cls(**{**config, "config": TrainConfig(**config["config"])})


@keras.saving.register_keras_serializable("unreasonable_rnn")
class Muon(keras.optimizers.Muon):
    """keras.optimizers.Muon with the model's matrix products: in bfloat16, as in Jordan et al. 2024, or float32."""

    def __init__(self, *args: Any, matmul_dtype: str = "float32", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.matmul_dtype = tf.as_dtype(matmul_dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"matmul_dtype": self.matmul_dtype.name}

    def lr_adjust(self, x: tf.Tensor) -> tf.Tensor:
        """Leave the scaling to `zeropower_via_newtonschulz5`."""
        return x

    def zeropower_via_newtonschulz5(self, x: tf.Tensor, steps: int) -> tf.Tensor:
        """Compute Keras's update, times the factor of its `lr_adjust`, which the last iteration includes.

        If that factor followed, TensorFlow would rearrange its product with the learning rate, differently on each
        replica, and their copies of a weight would drift apart.
        """
        factor = math.sqrt(max(x.shape)) * self.rms_rate if self.rms_rate is not None else 1.0
        wide = x.shape[0] <= x.shape[1]
        x_MxN = x if wide else tf.transpose(x)
        x_MxN /= tf.norm(x_MxN) + 1e-7

        def multiply(a: tf.Tensor, b: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
            return recurrence.matmul(a, b, self.matmul_dtype, transpose_b)

        for step in range(steps):
            scale = factor if step == steps - 1 else 1.0
            a, b, c = (scale * coefficient for coefficient in (self.muon_a, self.muon_b, self.muon_c))
            gram_MxM = multiply(x_MxN, x_MxN, transpose_b=True)
            polynomial_MxM = b * gram_MxM + c * multiply(gram_MxM, gram_MxM)
            x_MxN = a * x_MxN + multiply(polynomial_MxM, x_MxN)
        return x_MxN if wide else tf.transpose(x_MxN)


class _Fused(keras.Optimizer):
    """Adam's update of a weight in one kernel, and the powers of its betas once for all weights.

    On a GPU the number of kernels bounds the speed of a small model; on a CPU each would be a pass over memory.
    """

    beta_names: tuple[str, str]  # Adam's settings, as the Keras class names them

    @property
    def betas(self) -> tuple[float, float]:
        beta_1, beta_2 = (getattr(self, name) for name in self.beta_names)
        return beta_1, beta_2

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        step = tf.cast(self.iterations + 1, tf.float32)
        scalars = (tf.cast(learning_rate, tf.float32), *(beta**step for beta in self.betas))
        super()._backend_update_step(grads, trainable_variables, scalars)

    def _adam(self, weight: Any, m: Any, v: Any, rate: tf.Tensor, powers: Sequence[tf.Tensor], g: tf.Tensor) -> None:
        if kernel.ops():  # TensorFlow's on a CPU rounds some numbers differently on each replica
            alpha = rate * tf.sqrt(1 - powers[1]) / (1 - powers[0])
            settings = [alpha, *(1 - beta for beta in self.betas), self.epsilon]
            updated = kernel.adam([tf.convert_to_tensor(x) for x in (weight, m, v)], g, settings)
            for variable, value in zip((weight, m, v), updated, strict=True):
                self.assign(variable, value)
            return
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=m.value.handle,
            v=v.value.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            epsilon=self.epsilon,
            grad=g,
        )


@keras.saving.register_keras_serializable("unreasonable_rnn")
class FusedAdam(_Fused, keras.optimizers.Adam):
    """keras.optimizers.Adam and, with a weight decay, AdamW."""

    beta_names = "beta_1", "beta_2"

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: Any) -> None:
        index, (rate, *powers) = self._get_variable_index(variable), learning_rate
        self._adam(variable, self._momentums[index], self._velocities[index], rate, powers, gradient)


@keras.saving.register_keras_serializable("unreasonable_rnn")
class FusedMuon(_Fused, Muon):
    """Muon, fused for the weights that it leaves to Adam."""

    beta_names = "adam_beta_1", "adam_beta_2"

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: Any) -> None:
        index, (rate, *powers) = self._get_variable_index(variable), learning_rate
        m, v = self.momentums[index], self.adam_velocities[index]
        if v is None:
            self._muon_update_step(gradient, variable, rate, m)
        else:
            self._adam(variable, m, v, rate * self.adam_lr_ratio, powers, gradient)


def make_optimizer(
    config: TrainConfig,
    total: int,
    epoch_steps: int,
    variables: list[Any],
    inner: Sequence[Any],
    matmul_dtype: tf.DType = tf.float32,
) -> keras.Optimizer:
    """Create the config's Keras optimizer for these variables. It expects gradients summed over all replicas.

    inner: the variables for muon (`CharRNN.inner_kernels`); adam takes the others.
    matmul_dtype: of muon's products on a CPU. A GPU's are in float32, rounded to TF32 as `prepare` has set it.
    A constant learning rate is a variable that callbacks may set.
    """
    constant = config.schedule == "constant" and not config.warmup
    rate = config.learning_rate if constant else LearningRate(config, total, epoch_steps)
    kinds = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "muon": Muon,
        "rmsprop": keras.optimizers.RMSprop,
        "sgd": keras.optimizers.SGD,
    }
    gpu = bool(tf.config.list_logical_devices("GPU"))
    if gpu or kernel.ops():  # the same results to rounding, and the same slots
        kinds |= {"adam": FusedAdam, "adamw": FusedAdam, "muon": FusedMuon}
    decay = config.weight_decay or None
    extra: dict[str, Any] = {}
    if config.optimizer == "sgd":
        extra = {"momentum": MOMENTUM}
    elif config.optimizer == "muon":
        orthogonal = {variable.path for variable in inner}
        others = [f"^{re.escape(v.path)}$" for v in variables if v.path not in orthogonal]
        extra = {"exclude_layers": others, "adam_weight_decay": decay}
        if not gpu:
            extra["matmul_dtype"] = matmul_dtype.name
    optimizer = kinds[config.optimizer](rate, weight_decay=decay, **extra)
    # The step has already summed the gradients, to clip them by their global norm. Keras must not sum them again.
    optimizer._all_reduce_sum_gradients = list
    if config.weight_decay:
        # Decay only kernels, not biases, norms and embeddings.
        optimizer.exclude_from_weight_decay([v for v in variables if not v.path.endswith("kernel")])
    if variables:
        optimizer.build(variables)
    return optimizer
