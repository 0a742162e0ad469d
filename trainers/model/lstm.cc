// The recurrence of an LSTM over a window, its gradient, and matrix products, as TensorFlow ops on float32.
//
// A step multiplies a few rows by one large matrix. General matrix products rearrange ("pack") that matrix on every
// call, which costs as much as multiplying 25 rows by it. Here it is packed once per window and multiplied T times.
// Products follow Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".
//
// The tests compare this file with trainers/model/recurrence.py and its Lstm cell. Gate columns are i, f, o, c.
//
// Legend: T time steps, B lanes, H units, G = 4 H gate columns; K inputs and N columns of a product of M rows.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

namespace {

#ifdef __AVX512F__
constexpr int W = 16;
#else
constexpr int W = 8;
#endif
constexpr int PANEL = 2 * W;  // columns of a panel: with ROWS rows, their sums fill the registers
constexpr int ROWS = 6;
constexpr int DEPTH = 256;  // inputs of a block: DEPTH x PANEL numbers stay in the first-level cache
constexpr int BLOCK = 96;   // rows of a block: BLOCK x DEPTH numbers stay in the second-level cache

typedef float V __attribute__((vector_size(4 * W), aligned(4), may_alias));

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, Free>;

Buffer allocate(int64_t count) {
  const size_t bytes = (4 * count + 63) / 64 * 64;
  return Buffer(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
}

V load(const float* p) { return *reinterpret_cast<const V*>(p); }
void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }

// A matrix b_KxN laid out for `multiply`: blocks of DEPTH rows, in each of them panels of PANEL columns, row by row.
struct Packed {
  int K, N;
  int64_t width;  // of all panels
  const float* data;

  // b has rows of `ldb` numbers. transposed: it is stored as NxK.
  // The thread keeps its buffer: freeing it would cost a page fault per 1,024 numbers.
  Packed(const float* b, int64_t ldb, int K, int N, bool transposed)
      : K(K), N(N), width((N + PANEL - 1) / PANEL * PANEL) {
    thread_local Buffer buffer;
    thread_local int64_t size = 0;
    if (size < K * width) buffer = allocate(size = K * width);
    data = buffer.get();
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
      const int depth = std::min(DEPTH, K - k0);
      float* block = buffer.get() + k0 * width;
      if (transposed) {  // reads b row by row, writes within a panel
        for (int n = 0; n < width; ++n)
          for (int k = 0; k < depth; ++k)
            block[(n / PANEL * depth + k) * PANEL + n % PANEL] = n < N ? b[n * ldb + k0 + k] : 0;
        continue;
      }
      for (int k = 0; k < depth; ++k)
        for (int n0 = 0; n0 < N; n0 += PANEL) {
          const float* from = b + (k0 + k) * ldb + n0;
          float* to = block + n0 * depth + k * PANEL;
          if (n0 + PANEL <= N) {
            store(to, load(from)), store(to + W, load(from + W));
            continue;
          }
          std::memset(to, 0, 4 * PANEL);
          std::memcpy(to, from, 4 * (N - n0));
        }
    }
  }
};

// c_MxPANEL = a_MxK b_KxPANEL + d_MxPANEL for one panel; d may be c, or null for zeros. Rows of a are `lda` numbers
// apart, those of c and d `ldc`. TURNED: a is stored as KxM. d is read last, since it is in no cache yet.
template <int M, bool TURNED>
void multiply_tile(int K, const float* a, int64_t lda, const float* b, const float* d, float* c, int64_t ldc) {
  V sum[M][2];
  for (int m = 0; m < M; ++m) {
    __builtin_prefetch((d ? d : c) + m * ldc);
    sum[m][0] = sum[m][1] = V{};
  }
  for (int k = 0; k < K; ++k, b += PANEL) {
    const V b0 = load(b), b1 = load(b + W);
    for (int m = 0; m < M; ++m) {
      const V x = (TURNED ? a[k * M + m] : a[m * lda + k]) - V{};  // V{} + a would be an addition, since -0 + 0 is 0
      sum[m][0] += x * b0;
      sum[m][1] += x * b1;
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < 2; ++v) {
      const int64_t at = m * ldc + v * W;
      store(c + at, d ? sum[m][v] + load(d + at) : sum[m][v]);
    }
}

// `multiply_tile` for 1, 2, … rows.
template <bool TURNED, int... M>
auto multiply_tiles(std::integer_sequence<int, M...>) {
  return std::array{multiply_tile<M + 1, TURNED>...};
}

// Rows first(i) to first(i + 1) form tile i. They are divided evenly: 25 rows make five tiles of five.
struct Tiles {
  int rows, count = (rows + ROWS - 1) / ROWS;
  int first(int tile) const { return tile * rows / count; }
};

// c_MxN = a_MxK b_KxN + d_MxN, like `multiply_tile`, for a block: K <= DEPTH. TURNED: each tile of a is stored as KxM.
template <bool TURNED>
void multiply_block(int M, int K, int N, const float* a, int64_t lda, const float* panel, const float* d, float* c) {
  static const auto by_rows = multiply_tiles<TURNED>(std::make_integer_sequence<int, ROWS>());
  const Tiles tiles{M};
  for (int n0 = 0; n0 < N; n0 += PANEL, panel += K * PANEL)
    for (int tile = 0; tile < tiles.count; ++tile) {
      const int first = tiles.first(tile), rows = tiles.first(tile + 1) - first;
      const auto multiply = by_rows[rows - 1];
      const float* from = a + first * (TURNED ? K : lda);
      const int64_t at = int64_t(first) * N + n0;
      if (n0 + PANEL <= N) {
        multiply(K, from, lda, panel, d ? d + at : nullptr, c + at, N);
        continue;
      }
      float edge[ROWS * PANEL] = {};
      for (int m = 0; d && m < rows; ++m) std::memcpy(edge + m * PANEL, d + at + int64_t(m) * N, 4 * (N - n0));
      multiply(K, from, lda, panel, edge, edge, PANEL);
      for (int m = 0; m < rows; ++m) std::memcpy(c + at + int64_t(m) * N, edge + m * PANEL, 4 * (N - n0));
    }
}

// Copies a_KxM, with rows of `lda` numbers, tile by tile for `multiply_block`.
void turn(int M, int K, const float* a, int64_t lda, float* to) {
  const Tiles tiles{M};
  for (int k = 0; k < K; ++k, a += lda)
    for (int tile = 0; tile < tiles.count; ++tile) {
      const int first = tiles.first(tile), rows = tiles.first(tile + 1) - first;
      const auto copy = [&](auto rows) {
        for (int m = 0; m < rows; ++m) to[first * K + k * rows + m] = a[first + m];
      };
      rows == ROWS ? copy(std::integral_constant<int, ROWS>()) : copy(rows);  // a constant, for copies without a loop
    }
}

// c_MxN = a_MxK b_KxN + d_MxN, like `multiply_tile`, for few rows.
void multiply(int M, const float* a, const Packed& b, const float* d, float* c) {
  for (int k = 0; k < b.K; k += DEPTH)
    multiply_block<false>(M, std::min(DEPTH, b.K - k), b.N, a + k, b.K, b.data + k * b.width, k ? c : d, c);
}

V clamp(V x, float most) {
  const V high = V{} + most;
  x = x > high ? high : x;
  return x < -high ? -high : x;
}

// The rational approximation that Eigen and XLA use, within a few units in the last place.
V tanh(V x) {
  x = clamp(x, 7.90531110763549805f);
  const V y = x * x;
  V p = V{} - 2.76076847742355e-16f;
  for (const float a : {2.00018790482477e-13f, -8.60467152213735e-11f, 5.12229709037114e-08f, 1.48572235717979e-05f,
                        6.37261928875436e-04f, 4.89352455891786e-03f})
    p = p * y + a;
  V q = V{} + 1.19825839466702e-06f;
  for (const float b : {1.18534705686654e-04f, 2.26843463243900e-03f, 4.89352518554385e-03f}) q = q * y + b;
  return x * p / q;
}

V sigmoid(V x) { return tanh(x * 0.5f) * 0.5f + 0.5f; }

// A vector of `count` numbers, padded with zeros.
V load(const float* p, int count) {
  if (count == W) return load(p);
  V v = {};
  std::memcpy(&v, p, 4 * count);
  return v;
}

void store(float* p, V v, int count) {
  if (count == W)
    store(p, v);
  else
    std::memcpy(p, &v, 4 * count);
}

// Calls f(unit, count) for all units, a vector at a time.
template <class F>
void for_units(int H, F f) {
  int u = 0;
  for (; u + W <= H; u += W) f(u, std::integral_constant<int, W>());  // a constant, for loads without branches
  if (u < H) f(u, H - u);
}

struct Inputs {
  TF_OpKernelContext* context;
  TF_Status* status = TF_NewStatus();
  TF_Tensor* tensors[8] = {};
  explicit Inputs(TF_OpKernelContext* context) : context(context) {
    for (int i = 0; i < TF_NumInputs(context); ++i) TF_GetInput(context, i, &tensors[i], status);
  }
  ~Inputs() {
    for (TF_Tensor* tensor : tensors)
      if (tensor) TF_DeleteTensor(tensor);
    TF_DeleteStatus(status);
  }
  const float* operator[](int i) const { return static_cast<const float*>(TF_TensorData(tensors[i])); }
  int dim(int i, int axis) const { return axis < TF_NumDims(tensors[i]) ? TF_Dim(tensors[i], axis) : -1; }

  // Fails the op unless input i has this shape.
  bool has(int i, std::initializer_list<int64_t> shape) {
    bool same = TF_NumDims(tensors[i]) == int(shape.size());
    for (int axis = 0; same && axis < int(shape.size()); ++axis) same = TF_Dim(tensors[i], axis) == shape.begin()[axis];
    if (same) return true;
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "input of an unexpected shape");
    TF_OpKernelContext_Failure(context, status);
    return false;
  }
  float* output(int i, std::initializer_list<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t length : shape) count *= length;
    TF_Tensor* tensor = TF_AllocateOutput(context, i, TF_FLOAT, shape.begin(), shape.size(), 4 * count, status);
    float* data = static_cast<float*>(TF_TensorData(tensor));
    TF_DeleteTensor(tensor);  // the context holds it too
    return data;
  }
};

// (z_TxBxG, r_HxG, h_BxH, c_BxH, keep_TxB) -> (h_T1xBxH from the state before on, c_TxBxH, gates_TxBxG)
void forward(void*, TF_OpKernelContext* context) {
  Inputs in(context);
  const int T = in.dim(0, 0), B = in.dim(0, 1), H = in.dim(2, 1), G = 4 * H;
  if (!in.has(0, {T, B, G}) || !in.has(1, {H, G}) || !in.has(2, {B, H}) || !in.has(3, {B, H}) || !in.has(4, {T, B})) return;
  const int64_t BH = int64_t(B) * H, BG = int64_t(B) * G;
  float *h = in.output(0, {T + 1, B, H}), *c = in.output(1, {T, B, H}), *gates = in.output(2, {T, B, G});
  const float *keep = in[4], *c_prev = in[3];
  const Packed r(in[1], G, H, G, false);
  const Buffer kept = allocate(BH);
  std::memcpy(h, in[2], 4 * BH);
  for (int t = 0; t < T; ++t, keep += B, h += BH, c_prev = c, c += BH, gates += BG) {
    for (int b = 0; b < B; ++b)
      for (int u = 0; u < H; ++u) kept.get()[b * H + u] = h[b * H + u] * keep[b];
    multiply(B, kept.get(), r, in[0] + t * BG, gates);
    for (int b = 0; b < B; ++b) {
      float* z = gates + int64_t(b) * G;
      for_units(H, [&, b](int u, auto n) {
        const int64_t at = int64_t(b) * H + u;
        const V i = sigmoid(load(z + u, n)), f = sigmoid(load(z + H + u, n));
        const V o = sigmoid(load(z + 2 * H + u, n)), g = tanh(load(z + 3 * H + u, n));
        const V next = f * (load(c_prev + at, n) * keep[b]) + i * g;
        store(z + u, i, n), store(z + H + u, f, n), store(z + 2 * H + u, o, n), store(z + 3 * H + u, g, n);
        store(c + at, next, n);
        store(h + BH + at, o * tanh(next), n);
      });
    }
  }
}

// (r_HxG, c_BxH before, keep_TxB, c_TxBxH, gates_TxBxG, dh_TxBxH, dh_BxH after, dc_BxH after)
//   -> (dz_TxBxG, dh_BxH before, dc_BxH before)
void backward(void*, TF_OpKernelContext* context) {
  Inputs in(context);
  const int T = in.dim(4, 0), B = in.dim(4, 1), H = in.dim(0, 0), G = 4 * H;
  if (!in.has(0, {H, G}) || !in.has(1, {B, H}) || !in.has(2, {T, B}) || !in.has(3, {T, B, H}) || !in.has(4, {T, B, G}) ||
      !in.has(5, {T, B, H}) || !in.has(6, {B, H}) || !in.has(7, {B, H}))
    return;
  const int64_t BH = int64_t(B) * H, BG = int64_t(B) * G;
  float *dz = in.output(0, {T, B, G}), *dh = in.output(1, {B, H}), *dc = in.output(2, {B, H});
  const Packed r(in[0], G, G, H, true);
  std::memcpy(dh, in[6], 4 * BH);
  std::memcpy(dc, in[7], 4 * BH);
  for (int t = T - 1; t >= 0; --t) {
    const float *keep = in[2] + int64_t(t) * B, *c = in[3] + t * BH, *c_prev = t ? c - BH : in[1];
    const float *gates = in[4] + t * BG, *dy = in[5] + t * BH;
    float* to = dz + t * BG;
    for (int b = 0; b < B; ++b) {
      const float* a = gates + int64_t(b) * G;
      float* d = to + int64_t(b) * G;
      for_units(H, [&, b](int u, auto n) {
        const int64_t at = int64_t(b) * H + u;
        const V i = load(a + u, n), f = load(a + H + u, n), o = load(a + 2 * H + u, n), g = load(a + 3 * H + u, n);
        const V tanh_c = tanh(load(c + at, n)), dy_h = load(dh + at, n) + load(dy + at, n);
        const V dy_c = load(dc + at, n) + dy_h * o * (1 - tanh_c * tanh_c);
        store(d + u, dy_c * g * i * (1 - i), n);
        store(d + H + u, dy_c * (load(c_prev + at, n) * keep[b]) * f * (1 - f), n);
        store(d + 2 * H + u, dy_h * tanh_c * o * (1 - o), n);
        store(d + 3 * H + u, dy_c * i * (1 - g * g), n);
        store(dc + at, dy_c * f * keep[b], n);
      });
    }
    multiply(B, to, r, nullptr, dh);
    for (int b = 0; b < B; ++b)
      for (int u = 0; u < H; ++u) dh[b * H + u] *= keep[b];
  }
}

// (a, b) -> a b, where either may be stored transposed.
template <bool A, bool B>
void product(void*, TF_OpKernelContext* context) {
  Inputs in(context);
  const int M = in.dim(0, A), K = in.dim(0, !A), N = in.dim(1, !B);
  if (!in.has(1, {B ? N : K, B ? K : N})) return;
  float* c = in.output(0, {M, N});
  if (K == 0) std::memset(c, 0, 4 * int64_t(M) * N);
  float turned[BLOCK * DEPTH];
  for (int k0 = 0; k0 < K; k0 += DEPTH) {
    const int depth = std::min(DEPTH, K - k0);
    const Packed b(in[1] + (B ? k0 : int64_t(k0) * N), B ? K : N, depth, N, B);
    for (int m0 = 0; m0 < M; m0 += BLOCK) {
      const int rows = std::min(BLOCK, M - m0);
      const float* a = in[0] + (A ? int64_t(k0) * M + m0 : int64_t(m0) * K + k0);
      if (A) {
        turn(rows, depth, a, M, turned);
        a = turned;
      }
      float* to = c + int64_t(m0) * N;
      multiply_block<A>(rows, depth, N, a, K, b.data, k0 ? to : nullptr, to);
    }
  }
}

void define(const char* name, std::initializer_list<const char*> inputs, std::initializer_list<const char*> outputs,
            void (*compute)(void*, TF_OpKernelContext*)) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder(name);
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(op, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(op, output);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(
      op, [](TF_ShapeInferenceContext* context, TF_Status* status) { TF_ShapeInferenceContextSetUnknownShape(context, status); });
  TF_RegisterOpDefinition(op, status);
  TF_RegisterKernelBuilder(name, TF_NewKernelBuilder(name, "CPU", nullptr, compute, nullptr), status);
  TF_DeleteStatus(status);
}

struct Register {
  Register() {
    define("CharRnnLstm", {"z: float", "r: float", "h: float", "c: float", "keep: float"},
           {"hs: float", "cs: float", "gates: float"}, forward);
    define("CharRnnLstmGrad",
           {"r: float", "c: float", "keep: float", "cs: float", "gates: float", "dhs: float", "dh_after: float", "dc_after: float"},
           {"dz: float", "dh: float", "dc: float"}, backward);
    define("CharRnnProduct", {"a: float", "b: float"}, {"c: float"}, product<false, false>);
    define("CharRnnProductTransposedA", {"a: float", "b: float"}, {"c: float"}, product<true, false>);
    define("CharRnnProductTransposedB", {"a: float", "b: float"}, {"c: float"}, product<false, true>);
  }
} registered;

}  // namespace
