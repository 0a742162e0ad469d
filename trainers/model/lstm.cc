// The recurrence of an LSTM over a window, its gradient, products, sums of rows and Adam, as TensorFlow ops on float32.
// With the attribute `rounded`, the factors of products are rounded to bfloat16, and sums stay in float32.
//
// A step multiplies a few rows by one large matrix. General matrix products rearrange ("pack") that matrix on every
// call, which costs as much as multiplying 25 rows by it. Here it is packed once per window and multiplied T times.
// Products follow Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".
//
// The tests compare this file with the loop of recurrence.py and the Lstm of cells.py. Gate columns are i, f, c, o.
//
// Legend: T time steps, B lanes, H units, G = 4 H gate columns; K inputs and N columns of a product of M rows. A word is
// 4 bytes of a factor: a float32, or two bfloat16 of inputs k and k + 1, as the processor multiplies them; U of them.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#ifdef __AVX__
#include <immintrin.h>
#endif
#ifdef __AVX512BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

namespace {

#ifdef __AVX512F__
constexpr int W = 16;
constexpr int ROWS = 13;
#else
constexpr int W = 8;
constexpr int ROWS = 6;
#endif
constexpr int PANEL = 2 * W;  // columns of a panel: with ROWS rows, their sums fill the registers
constexpr int DEPTH = 256;  // words of a block: DEPTH x PANEL words stay in the first-level cache
constexpr int BLOCK = 96;   // rows of a block: BLOCK x DEPTH words stay in the second-level cache
constexpr int AHEAD = 32;   // words of a panel to request ahead: the processor itself stops at each page's end
// Words between rows of a left factor: a constant, so that rows need no registers; 16 more, since rows a power of two apart
// would share cache lines.
constexpr int64_t STRIDE = DEPTH + 16;

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

// A vector of `count` numbers, padded with zeros.
V load(const float* p, int count) {
  if (count >= W) return load(p);
  V v = {};
  if (count > 0) std::memcpy(&v, p, 4 * count);
  return v;
}

void store(float* p, V v, int count) {
  if (count >= W)
    store(p, v);
  else if (count > 0)
    std::memcpy(p, &v, 4 * count);
}

// Requests COUNT numbers, a multiple of 16.
template <int COUNT>
void prefetch(const float* p) {
#pragma GCC unroll 32
  for (int i = 0; i < COUNT; i += 16) __builtin_prefetch(p + i);
}

// Swaps the blocks of STEP columns that are off the diagonal of two rows STEP apart.
template <int STEP, int... I>
void swap_columns(V& a, V& b, std::integer_sequence<int, I...>) {
  const V upper = {(I & STEP ? b : a)[I & STEP ? I - STEP : I]...};
  b = V{(I & STEP ? b : a)[I & STEP ? I : I + STEP]...};
  a = upper;
}

// Transposes W x W numbers by swapping blocks of STEP columns, then ever smaller ones.
template <int STEP = W / 2>
void transpose(V* rows) {
  for (int row = 0; row < W; ++row)
    if (!(row & STEP)) swap_columns<STEP>(rows[row], rows[row + STEP], std::make_integer_sequence<int, W>());
  if constexpr (STEP > 1) transpose<STEP / 2>(rows);
}

// Factors in float32.
struct Float32 {
  static constexpr int INPUTS = 1;  // of a word
  static int words(int K) { return K; }

  // The first W words of a row of `count` numbers.
  static V pack_row(const float* a, int count) { return load(a, count); }
  // One word of each of W rows, stored as columns: of their row k and, if there are two inputs, k + 1, or null.
  static V pack_column(const float* a, const float*, int count) { return load(a, count); }
  // sum + x b for a word x of a and W words b.
  static V add(V sum, float x, V b) { return sum + (x - V{}) * b; }  // V{} + x would be an addition, since -0 + 0 is 0
};

#ifdef __AVX512BF16__
struct Bfloat16 {
  static constexpr int INPUTS = 2;
  static int words(int K) { return (K + 31) / 32 * 16; }  // whole tiles

  static V pack_row(const float* a, int count) {
    return (V)_mm512_cvtne2ps_pbh((__m512)load(a + W, count - W), (__m512)load(a, count));
  }
  static V pack_column(const float* a, const float* next, int count) {
    const auto half = [count](const float* p) {
      return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(p, p ? count : 0)));
    };
    return (V)_mm512_or_si512(half(a), _mm512_slli_epi32(half(next), 16));
  }
  static V add(V sum, float x, V b) { return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(x), (__m512bh)b); }
};
#else
// Rounded to bfloat16 and multiplied as float32: without the instructions, the same results but for denormals and the
// order of sums.
struct Bfloat16 : Float32 {
  static V pack_row(const float* a, int count) {
    typedef uint32_t Bits __attribute__((vector_size(4 * W)));
    const V v = load(a, count);
    const Bits bits = (Bits)v, nan = (Bits)(v != v);
    return (V)((nan & bits) | (~nan & (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000));
  }
  static V pack_column(const float* a, const float*, int count) { return pack_row(a, count); }
};
#endif

// Converts K numbers to words. `block`: words between blocks of DEPTH words.
template <class P>
void convert(const float* a, int K, float* to, int64_t block) {
  const int U = P::words(K);
  for (int u = 0; u < U; u += W)
    store(to + u / DEPTH * block + u % DEPTH, P::pack_row(a + u * P::INPUTS, K - u * P::INPUTS), U - u);
}

// Converts a_KxM, with rows of `lda` numbers, to M rows of words.
template <class P>
void convert_transposed(int M, int K, const float* a, int64_t lda, float* to) {
  const int U = P::words(K);
  for (int m = 0; m < M; m += W)
    for (int u = 0; u < U; u += W) {
      V rows[W];
      for (int i = 0; i < W; ++i) {
        const int k = (u + i) * P::INPUTS;
        const float* from = a + k * lda + m;
        rows[i] = k < K ? P::pack_column(from, k + 1 < K ? from + lda : nullptr, M - m) : V{};
      }
      transpose(rows);
      for (int i = 0; i < std::min(W, M - m); ++i) store(to + (m + i) * STRIDE + u, rows[i], U - u);
    }
}

// A matrix b_KxN laid out for `multiply`: blocks of DEPTH words, in each of them panels of PANEL columns, word by word.
template <class P>
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
    if (size < P::words(K) * width) buffer = allocate(size = P::words(K) * width);
    data = buffer.get();
    for (int u0 = 0; u0 < P::words(K); u0 += DEPTH) {
      const int k0 = u0 * P::INPUTS, U = std::min(DEPTH, P::words(K) - u0);
      float* block = buffer.get() + u0 * width;
      const auto at = [=](int u, int n) { return block + (n / PANEL * U + u) * PANEL + n % PANEL; };
      // Either way the inner loop reads along the rows of memory.
      if (transposed) {
        for (int n = 0; n < width; n += W)
          for (int u = 0; u < U; u += W) {
            const int k = k0 + u * P::INPUTS;
            V rows[W];
            for (int i = 0; i < W; ++i) rows[i] = n + i < N ? P::pack_row(b + (n + i) * ldb + k, K - k) : V{};
            transpose(rows);
            for (int i = 0; i < std::min(W, U - u); ++i) store(at(u + i, n), rows[i]);
          }
      } else {
        for (int u = 0; u < U; ++u)
          for (int n = 0; n < width; n += W) {
            const int k = k0 + u * P::INPUTS;
            const float* from = b + k * ldb + n;
            store(at(u, n), k < K ? P::pack_column(from, k + 1 < K ? from + ldb : nullptr, N - n) : V{});
          }
      }
    }
  }
};

// c_MxPANEL = a_MxU b_UxPANEL + d_MxPANEL for one panel; d may be c, or null for zeros. Rows of a are STRIDE words apart,
// those of c and d `ldc`. d is read last, since it is in no cache yet. The pragmas unroll early enough for GCC to keep the
// sums in registers.
template <class P, int M>
void multiply_tile(int U, const float* a, const float* b, const float* d, float* c, int64_t ldc) {
  V sum[M][2];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    prefetch<PANEL>((d ? d : c) + m * ldc);
    sum[m][0] = sum[m][1] = V{};
  }
  for (int u = 0; u < U; ++u, b += PANEL) {
    const V b0 = load(b), b1 = load(b + W);
    prefetch<PANEL>(b + AHEAD * PANEL);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      sum[m][0] = P::add(sum[m][0], a[m * STRIDE + u], b0);
      sum[m][1] = P::add(sum[m][1], a[m * STRIDE + u], b1);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t at = m * ldc + v * W;
      store(c + at, d ? sum[m][v] + load(d + at) : sum[m][v]);
    }
}

// `multiply_tile` for 1, 2, … rows.
template <class P, int... M>
auto multiply_tiles(std::integer_sequence<int, M...>) {
  return std::array{multiply_tile<P, M + 1>...};
}

// Intel's AMX: products of bfloat16 in tile registers of up to 16 rows of 16 words. An op keeps one while it multiplies.
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
struct Amx {
  static constexpr int ROWS = 32;  // of a product: two tiles of a, two of b, and four of sums
  static inline thread_local int configured_rows = 0;  // of the thread's registers; 0: none

  // Linux must allow a process to use the registers: ARCH_REQ_XCOMP_PERM of XTILEDATA.
  static bool usable() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return allowed;
  }
  ~Amx() {
    if (configured_rows) _tile_release();
    configured_rows = 0;
  }

  // `multiply_tile` for 1 to ROWS rows, but d is read first.
  static void multiply(int M, int U, const float* a, const float* b, const float* d, float* c, int64_t ldc) {
    const int top = M > ROWS / 2 ? (M + 1) / 2 : M;
    if (configured_rows != M) configure(configured_rows = M, top);
    asm volatile("" ::: "memory");  // the intrinsics do not tell GCC what they read
    for (int m = 0; m < M; ++m) prefetch<PANEL>((d ? d : c) + m * ldc + PANEL);  // the next panel's: these are due now
    M > top ? multiply<true>(top, U, a, b, d, c, 4 * ldc) : multiply<false>(top, U, a, b, d, c, 4 * ldc);
  }

 private:
  static void configure(int M, int top) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // of a row
      uint8_t rows[16] = {};
    } config;
    for (const int tile : {0, 1, 4}) config.rows[tile] = top;
    for (const int tile : {2, 3, 5}) config.rows[tile] = std::max(1, M - top);
    for (const int tile : {6, 7}) config.rows[tile] = 16;
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
  }

  // Strides in bytes. TWO: there are rows below `top`.
  template <bool TWO>
  static void multiply(int top, int U, const float* a, const float* b, const float* d, float* c, int64_t ldc) {
    const auto below = [top](auto* p, int64_t stride) { return p + top * stride / 4; };
    if (d) {
      _tile_loadd(0, d, ldc);
      _tile_loadd(1, d + W, ldc);
      if (TWO) _tile_loadd(2, below(d, ldc), ldc);
      if (TWO) _tile_loadd(3, below(d, ldc) + W, ldc);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int u = 0; u < U; u += 16, a += 16, b += 16 * PANEL) {
      prefetch<16 * PANEL>(b + AHEAD * PANEL);
      _tile_loadd(6, b, 4 * PANEL);
      _tile_loadd(7, b + W, 4 * PANEL);
      _tile_loadd(4, a, 4 * STRIDE);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (TWO) {
        _tile_loadd(5, a + top * STRIDE, 4 * STRIDE);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, ldc);
    _tile_stored(1, c + W, ldc);
    if (TWO) _tile_stored(2, below(c, ldc), ldc);
    if (TWO) _tile_stored(3, below(c, ldc) + W, ldc);
  }
};
#else
struct Amx {
  static constexpr int ROWS = 1;
  static bool usable() { return false; }
  static void multiply(int, int, const float*, const float*, const float*, float*, int64_t) {}
};
#endif

// Rows first(i) to first(i + 1) form tile i. They are divided evenly: with ROWS = 6, 25 rows make five tiles of five.
struct Tiles {
  int rows, most = ROWS, count = (rows + most - 1) / most;
  int first(int tile) const { return int64_t(tile) * rows / count; }
};

// c_MxN = a_MxU b_UxN + d_MxN, like `multiply_tile`, for a block: U <= DEPTH.
template <class P>
void multiply_block(int M, int U, int N, const float* a, const float* panel, const float* d, float* c) {
  static const auto by_rows = multiply_tiles<P>(std::make_integer_sequence<int, ROWS>());
  const bool amx = P::INPUTS == 2 && Amx::usable();
  const Tiles tiles{M, amx ? Amx::ROWS : ROWS};
  const auto one_tile = [&](int rows, const float* from, const float* add, float* to, int64_t ldc) {
    amx ? Amx::multiply(rows, U, from, panel, add, to, ldc) : by_rows[rows - 1](U, from, panel, add, to, ldc);
  };
  for (int n0 = 0; n0 < N; n0 += PANEL, panel += U * PANEL)
    for (int tile = 0; tile < tiles.count; ++tile) {
      const int first = tiles.first(tile), rows = tiles.first(tile + 1) - first;
      const float* from = a + first * STRIDE;
      const int64_t at = int64_t(first) * N + n0;
      if (n0 + PANEL <= N) {
        one_tile(rows, from, d ? d + at : nullptr, c + at, N);
        continue;
      }
      float edge[std::max(ROWS, Amx::ROWS) * PANEL] = {};
      for (int m = 0; d && m < rows; ++m) std::memcpy(edge + m * PANEL, d + at + int64_t(m) * N, 4 * (N - n0));
      one_tile(rows, from, edge, edge, PANEL);
      for (int m = 0; m < rows; ++m) std::memcpy(c + at + int64_t(m) * N, edge + m * PANEL, 4 * (N - n0));
    }
}

// A left factor of few rows, in blocks of DEPTH words.
template <class P>
struct Rows {
  int M, U;
  Buffer words = allocate(int64_t(M) * STRIDE * ((U + DEPTH - 1) / DEPTH));
  Rows(int M, int K) : M(M), U(P::words(K)) {}

  void set(int m, const float* a, int K) { convert<P>(a, K, words.get() + m * STRIDE, M * STRIDE); }

  // c_MxN = this_MxU b_UxN + d_MxN, like `multiply_tile`.
  void multiply(const Packed<P>& b, const float* d, float* c) const {
    for (int u = 0; u < U; u += DEPTH)
      multiply_block<P>(M, std::min(DEPTH, U - u), b.N, words.get() + u / DEPTH * M * STRIDE, b.data + u * b.width, u ? c : d, c);
  }
};

#ifdef __AVX512F__
V smaller(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }
V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
V smaller(V a, V b) { return (V)_mm256_min_ps((__m256)a, (__m256)b); }
V larger(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
#else
V smaller(V a, V b) { return a < b ? a : b; }
V larger(V a, V b) { return a > b ? a : b; }
#endif

// The rational approximation of Eigen, within a few units in the last place.
V tanh(V x) {
  const V most = V{} + 8.01773357f;
  x = larger(-most, smaller(most, x));  // x last: the result is NaN if x is
  const V y = x * x;
  V p = V{} + 1.394553628e-8f, q = V{} + 8.015776984e-7f;
  for (const float a : {2.102733560e-5f, 3.520756727e-3f, 1.340216100e-1f}) p = p * y + a;
  for (const float b : {3.326951409e-4f, 2.597254514e-2f, 4.673548340e-1f, 1.0f}) q = q * y + b;
  return (x * y * p + x) / q;
}

V sqrt(V x) {
  for (int i = 0; i < W; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

V sigmoid(V x) { return tanh(x * 0.5f) * 0.5f + 0.5f; }

// Calls f(first, count) for all numbers, a vector at a time.
template <class F>
void for_vectors(int64_t numbers, F f) {
  int64_t first = 0;
  for (; first + W <= numbers; first += W) f(first, std::integral_constant<int, W>());  // for loads without branches
  if (first < numbers) f(first, int(numbers - first));
}

// Requests the four gates of a unit in the next lane, which are no longer in a cache close by.
void prefetch_next(const float* gates, int H) {
  for (int g = 4; g < 8; ++g) __builtin_prefetch(gates + g * H, 1, 2);
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
    if (!same) fail("input of an unexpected shape");
    return same;
  }
  void fail(const char* reason) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, reason);
    TF_OpKernelContext_Failure(context, status);
  }
  // Allocates output i. Null, and the op has failed, if there is not enough memory.
  float* output(int i, std::initializer_list<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t length : shape) count *= length;
    return data(TF_AllocateOutput(context, i, TF_FLOAT, shape.begin(), shape.size(), 4 * count, status));
  }
  // The same, in the memory of an input that nothing else needs, if possible. After it, `in[input]` is not valid.
  float* output(int i, std::initializer_list<int64_t> shape, int input) {
    TF_DeleteTensor(std::exchange(tensors[input], nullptr));
    return data(TF_ForwardInputOrAllocateOutput(context, &input, 1, i, shape.begin(), shape.size(), nullptr, status));
  }

 private:
  float* data(TF_Tensor* tensor) {
    if (!tensor) {
      TF_OpKernelContext_Failure(context, status);
      return nullptr;
    }
    float* data = static_cast<float*>(TF_TensorData(tensor));
    TF_DeleteTensor(tensor);  // the context holds it too
    return data;
  }
};

// (z_TxBxG, r_HxG, h_BxH, c_BxH, keep_TxB) -> (h_T1xBxH, starting with the state before the window, c_TxBxH, gates_TxBxG)
template <class P>
void forward(TF_OpKernelContext* context) {
  Inputs in(context);
  [[maybe_unused]] const Amx amx;  // releases the tiles at the end
  const int T = in.dim(0, 0), B = in.dim(0, 1), H = in.dim(2, 1), G = 4 * H;
  if (!in.has(0, {T, B, G}) || !in.has(1, {H, G}) || !in.has(2, {B, H}) || !in.has(3, {B, H}) || !in.has(4, {T, B})) return;
  const int64_t BH = int64_t(B) * H, BG = int64_t(B) * G;
  const float* z_TxBxG = in[0];
  float *h = in.output(0, {T + 1, B, H}), *c = in.output(1, {T, B, H}), *gates = in.output(2, {T, B, G}, 0);
  if (!h || !c || !gates) return;
  const float *keep = in[4], *c_prev = in[3];
  const Packed<P> r(in[1], G, H, G, false);
  const Buffer kept = allocate(H);
  Rows<P> rows(B, H);
  std::memcpy(h, in[2], 4 * BH);
  for (int t = 0; t < T; ++t, keep += B, h += BH, c_prev = c, c += BH, gates += BG) {
    for (int b = 0; b < B; ++b) {
      for (int u = 0; u < H; ++u) kept.get()[u] = h[int64_t(b) * H + u] * keep[b];
      rows.set(b, kept.get(), H);
    }
    rows.multiply(r, z_TxBxG + t * BG, gates);
    for (int b = 0; b < B; ++b) {
      float *a = gates + int64_t(b) * G, *c_row = c + int64_t(b) * H, *h_row = h + BH + int64_t(b) * H;
      for_vectors(H, [&, b](int64_t u, auto n) {
        prefetch_next(a + u, H);
        const V i = sigmoid(load(a + u, n)), f = sigmoid(load(a + H + u, n));
        const V g = tanh(load(a + 2 * H + u, n)), o = sigmoid(load(a + 3 * H + u, n));
        store(a + u, i, n), store(a + H + u, f, n), store(a + 2 * H + u, g, n), store(a + 3 * H + u, o, n);
        store(c_row + u, f * (load(c_prev + int64_t(b) * H + u, n) * keep[b]) + i * g, n);
      });
      for_vectors(H, [&](int64_t u, auto n) {  // a loop of its own, since it waits for the results of the first
        store(h_row + u, load(a + 3 * H + u, n) * tanh(load(c_row + u, n)), n);
      });
    }
  }
}

// (r_HxG, c_BxH before, keep_TxB, c_TxBxH, gates_TxBxG, dh_TxBxH, dh_BxH after, dc_BxH after)
//   -> (dz_TxBxG, dh_BxH before, dc_BxH before)
template <class P>
void backward(TF_OpKernelContext* context) {
  Inputs in(context);
  [[maybe_unused]] const Amx amx;  // releases the tiles at the end
  const int T = in.dim(4, 0), B = in.dim(4, 1), H = in.dim(0, 0), G = 4 * H;
  if (!in.has(0, {H, G}) || !in.has(1, {B, H}) || !in.has(2, {T, B}) || !in.has(3, {T, B, H}) || !in.has(4, {T, B, G}) ||
      !in.has(5, {T, B, H}) || !in.has(6, {B, H}) || !in.has(7, {B, H}))
    return;
  const int64_t BH = int64_t(B) * H, BG = int64_t(B) * G;
  const float* gates_TxBxG = in[4];
  float *dz = in.output(0, {T, B, G}, 4), *dh = in.output(1, {B, H}), *dc = in.output(2, {B, H});
  if (!dz || !dh || !dc) return;
  const Packed<P> r(in[0], G, G, H, true);
  Rows<P> rows(B, G);
  std::memcpy(dh, in[6], 4 * BH);
  std::memcpy(dc, in[7], 4 * BH);
  for (int t = T - 1; t >= 0; --t) {
    const float *keep = in[2] + int64_t(t) * B, *c = in[3] + t * BH, *c_prev = t ? c - BH : in[1];
    const float *gates = gates_TxBxG + t * BG, *dy = in[5] + t * BH;
    float* to = dz + t * BG;
    for (int b = 0; b < B; ++b) {
      const float* a = gates + int64_t(b) * G;
      float* d = to + int64_t(b) * G;
      for_vectors(H, [&, b](int64_t u, auto n) {
        const int64_t at = int64_t(b) * H + u;
        prefetch_next(a + u, H);
        const V i = load(a + u, n), f = load(a + H + u, n), g = load(a + 2 * H + u, n), o = load(a + 3 * H + u, n);
        const V tanh_c = tanh(load(c + at, n)), dy_h = load(dh + at, n) + load(dy + at, n);
        const V dy_c = load(dc + at, n) + dy_h * o * (1 - tanh_c * tanh_c);
        store(d + u, dy_c * g * i * (1 - i), n);
        store(d + H + u, dy_c * (load(c_prev + at, n) * keep[b]) * f * (1 - f), n);
        store(d + 2 * H + u, dy_c * i * (1 - g * g), n);
        store(d + 3 * H + u, dy_h * tanh_c * o * (1 - o), n);
        store(dc + at, dy_c * f * keep[b], n);
      });
      rows.set(b, d, G);
    }
    rows.multiply(r, nullptr, dh);
    for (int b = 0; b < B; ++b)
      for (int u = 0; u < H; ++u) dh[int64_t(b) * H + u] *= keep[b];
  }
}

// (a, b) -> a b, where either may be stored transposed.
template <class P, bool A, bool B>
void product(TF_OpKernelContext* context) {
  Inputs in(context);
  [[maybe_unused]] const Amx amx;  // releases the tiles at the end
  const int M = in.dim(0, A), K = in.dim(0, !A), N = in.dim(1, !B);
  if (!in.has(0, {in.dim(0, 0), in.dim(0, 1)}) || !in.has(1, {B ? N : K, B ? K : N})) return;
  float* c = in.output(0, {M, N});
  if (!c) return;
  if (K == 0) std::memset(c, 0, 4 * int64_t(M) * N);
  alignas(64) float words[BLOCK * STRIDE];
  for (int k0 = 0; k0 < K; k0 += DEPTH * P::INPUTS) {
    const int depth = std::min(DEPTH * P::INPUTS, K - k0), U = P::words(depth);
    const Packed<P> b(in[1] + (B ? k0 : int64_t(k0) * N), B ? K : N, depth, N, B);
    for (int m0 = 0; m0 < M; m0 += BLOCK) {
      const int rows = std::min(BLOCK, M - m0);
      const float* a = in[0] + (A ? int64_t(k0) * M + m0 : int64_t(m0) * K + k0);
      if (A)
        convert_transposed<P>(rows, depth, a, M, words);
      else
        for (int m = 0; m < rows; ++m) convert<P>(a + int64_t(m) * K, depth, words + m * STRIDE, 0);
      float* to = c + int64_t(m0) * N;
      multiply_block<P>(rows, U, N, words, b.data, k0 ? to : nullptr, to);
    }
  }
}

// (x_NxK, ids_N, table_VxK) -> sum_VxK of the rows of each id, the gradient of the table whose rows were looked up.
void sum_rows(TF_OpKernelContext* context) {
  Inputs in(context);
  const int N = in.dim(0, 0), K = in.dim(0, 1), rows = in.dim(2, 0);
  if (!in.has(0, {N, K}) || !in.has(1, {N}) || !in.has(2, {rows, K})) return;
  const auto* ids = reinterpret_cast<const int32_t*>(in[1]);
  float* sum = in.output(0, {rows, K});
  if (!sum) return;
  std::memset(sum, 0, 4 * int64_t(rows) * K);
  for (int n = 0; n < N; ++n) {
    const float* from = in[0] + int64_t(n) * K;
    if (ids[n] < 0 || ids[n] >= rows) return in.fail("id of no row of the table");
    float* to = sum + int64_t(ids[n]) * K;
    for (int k = 0; k < K; ++k) to[k] += from[k];
  }
}

// (weight, m, v, gradient, [rate, 1 - beta_1, 1 - beta_2, epsilon]) -> (weight, m, v) after a step of Adam.
void adam(TF_OpKernelContext* context) {
  Inputs in(context);
  const int64_t count = TF_TensorElementCount(in.tensors[0]);
  if (!in.has(0, {count}) || !in.has(1, {count}) || !in.has(2, {count}) || !in.has(3, {count}) || !in.has(4, {4})) return;
  float *weight = in.output(0, {count}), *m = in.output(1, {count}), *v = in.output(2, {count});
  if (!weight || !m || !v) return;
  const float *weight_0 = in[0], *m_0 = in[1], *v_0 = in[2], *gradient = in[3];
  const float rate = in[4][0], new_m = in[4][1], new_v = in[4][2], epsilon = in[4][3];
  for_vectors(count, [&](int64_t at, auto n) {
    const V g = load(gradient + at, n), mean = load(m_0 + at, n), square = load(v_0 + at, n);
    const V next_mean = mean + (g - mean) * new_m, next_square = square + (g * g - square) * new_v;
    store(m + at, next_mean, n), store(v + at, next_square, n);
    store(weight + at, load(weight_0 + at, n) - next_mean * rate / (sqrt(next_square) + epsilon), n);
  });
}

using Compute = void (*)(TF_OpKernelContext*);

// Registers an op with the attribute `rounded`, off by default, which chooses between the two functions.
template <Compute float32, Compute bfloat16>
void define(const char* name, std::initializer_list<const char*> inputs, std::initializer_list<const char*> outputs) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder(name);
  TF_OpDefinitionBuilderAddAttr(op, "rounded: bool = false");
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(op, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(op, output);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(
      op, [](TF_ShapeInferenceContext* context, TF_Status* status) { TF_ShapeInferenceContextSetUnknownShape(context, status); });
  TF_RegisterOpDefinition(op, status);
  const auto create = [](TF_OpKernelConstruction* construction) -> void* {
    TF_Status* status = TF_NewStatus();
    auto* chosen = new unsigned char;
    TF_OpKernelConstruction_GetAttrBool(construction, "rounded", chosen, status);
    TF_DeleteStatus(status);
    return chosen;
  };
  const auto compute = [](void* chosen, TF_OpKernelContext* context) {
    *static_cast<unsigned char*>(chosen) ? bfloat16(context) : float32(context);
  };
  const auto destroy = [](void* chosen) { delete static_cast<unsigned char*>(chosen); };
  TF_RegisterKernelBuilder(name, TF_NewKernelBuilder(name, "CPU", create, compute, destroy), status);
  TF_DeleteStatus(status);
}

struct Register {
  Register() {
    define<forward<Float32>, forward<Bfloat16>>(
        "CharRnnLstm", {"z: float", "r: float", "h: float", "c: float", "keep: float"},
        {"hs: float", "cs: float", "gates: float"});
    define<backward<Float32>, backward<Bfloat16>>(
        "CharRnnLstmGrad",
        {"r: float", "c: float", "keep: float", "cs: float", "gates: float", "dhs: float", "dh_after: float", "dc_after: float"},
        {"dz: float", "dh: float", "dc: float"});
    define<adam, adam>("CharRnnAdam", {"weight: float", "m: float", "v: float", "gradient: float", "settings: float"},
                       {"new_weight: float", "new_m: float", "new_v: float"});
    define<sum_rows, sum_rows>("CharRnnSumRows", {"x: float", "ids: int32", "table: float"}, {"sum: float"});
    define_product<false, false>("CharRnnProduct");
    define_product<true, false>("CharRnnProductTransposedA");
    define_product<false, true>("CharRnnProductTransposedB");
  }

  template <bool A, bool B>
  static void define_product(const char* name) {
    define<product<Float32, A, B>, product<Bfloat16, A, B>>(name, {"a: float", "b: float"}, {"c: float"});
  }
} registered;

}  // namespace
