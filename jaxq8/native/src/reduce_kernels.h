// Sums and extremes, of runs of items and of columns of rows, in vector instructions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace jaxq8 {

// A kind of reduction of items T: its results are Out; what is joined from many parts is Total. Vectors have kLanes lanes of Out.
// Sums of integers wrap as XLA's do; unsigned arithmetic says so.
template <typename T>
struct SumOf {
  using Item = T;
  using Out = std::conditional_t<std::is_floating_point_v<T>, float, uint32_t>;
  using Total = std::conditional_t<std::is_floating_point_v<T>, double, uint32_t>;
  static constexpr bool kRounds = std::is_floating_point_v<T>;
  static constexpr int kLanes = 16;
  static Out Start() { return 0; }
  template <typename A, typename B>
  static auto Join(A a, B b) { return a + b; }
};

// The comparisons let NaN pass: an item that is NaN is taken, and nothing is larger than one that has been.
template <typename T>
struct LargestOf {
  using Item = T;
  using Out = T;
  using Total = T;
  static constexpr bool kRounds = false;
  static constexpr int kLanes = 64 / sizeof(T);
  static T Start() { return std::is_floating_point_v<T> ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::min(); }
  template <typename A>
  static A Join(A a, A b) { return (b > a) | (b != b) ? b : a; }
};

template <typename T>
struct SmallestOf {
  using Item = T;
  using Out = T;
  using Total = T;
  static constexpr bool kRounds = false;
  static constexpr int kLanes = 64 / sizeof(T);
  static T Start() { return std::is_floating_point_v<T> ? std::numeric_limits<T>::infinity() : std::numeric_limits<T>::max(); }
  template <typename A>
  static A Join(A a, A b) { return (b < a) | (b != b) ? b : a; }
};

// NaN where an item is NaN or infinite, which times 0 is NaN, and else 0.
struct NanOf {
  using Item = float;
  using Out = float;
  using Total = float;
  static constexpr bool kRounds = false;
  static constexpr int kLanes = 16;
  static float Start() { return 0.f; }
  template <typename A, typename B>
  static auto Join(A a, B b) { return a + b; }
};

// An item as what is summed or compared. A code is made signed before it is made wide.
template <typename Op>
inline typename Op::Out Wide(typename Op::Item x) {
  if constexpr (std::is_same_v<typename Op::Out, uint32_t>) {
    return static_cast<uint32_t>(static_cast<int32_t>(x));
  } else if constexpr (std::is_same_v<Op, NanOf>) {
    return x * 0.f;
  } else {
    return x;
  }
}

template <typename T, int kLanes>
using Lanes [[gnu::vector_size(kLanes * sizeof(T))]] = T;

template <typename Op>
inline Lanes<typename Op::Out, Op::kLanes> WideLanes(const typename Op::Item* from) {
  Lanes<typename Op::Item, Op::kLanes> items;
  std::memcpy(&items, from, sizeof items);
  if constexpr (std::is_same_v<Op, NanOf>) items *= 0.f;
  return __builtin_convertvector(items, Lanes<typename Op::Out, Op::kLanes>);
}

// A run of neighbours. Floats are summed in 64 sums, so a run of a few thousand rounds as little as sums in pairs do.
template <typename Op>
typename Op::Out ReduceRun(const typename Op::Item* x, int64_t n) {
  using Out = typename Op::Out;
  constexpr int64_t lanes = Op::kLanes;
  Out result = Op::Start();
  int64_t i = 0;
  if (n >= lanes) {
    Lanes<Out, lanes> a = Lanes<Out, lanes>{} + Op::Start(), b = a, c = a, d = a;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
      a = Op::Join(a, WideLanes<Op>(x + i));
      b = Op::Join(b, WideLanes<Op>(x + i + lanes));
      c = Op::Join(c, WideLanes<Op>(x + i + 2 * lanes));
      d = Op::Join(d, WideLanes<Op>(x + i + 3 * lanes));
    }
    for (; i + lanes <= n; i += lanes) a = Op::Join(a, WideLanes<Op>(x + i));
    a = Op::Join(Op::Join(a, b), Op::Join(c, d));
    Out parts[lanes];
    std::memcpy(parts, &a, sizeof parts);
    for (int64_t half = lanes / 2; half; half /= 2) {
      for (int64_t j = 0; j < half; ++j) parts[j] = Op::Join(parts[j], parts[j + half]);
    }
    result = parts[0];
  }
  for (; i < n; ++i) result = Op::Join(result, Wide<Op>(x[i]));
  return result;
}

template <typename Op>
typename Op::Out ReduceStridedRun(const typename Op::Item* x, int64_t n, int64_t stride) {
  typename Op::Out result = Op::Start();
  for (int64_t i = 0; i < n; ++i) result = Op::Join(result, Wide<Op>(x[i * stride]));
  return result;
}

constexpr int64_t kRun = 4096;  // the longest run that is summed at once

// A run of any length and stride.
template <typename Op>
typename Op::Total ReduceLongRun(const typename Op::Item* x, int64_t n, int64_t stride) {
  typename Op::Total total = Op::Start();
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t piece = std::min(kRun, n - i);
    const typename Op::Out part = stride == 1 ? ReduceRun<Op>(x + i, piece) : ReduceStridedRun<Op>(x + i * stride, piece, stride);
    total = Op::Join(total, static_cast<typename Op::Total>(part));
  }
  return total;
}

// Columns: `n` sums or extremes take a row, or four at once, which loads and stores them once.
template <typename Op>
void TakeRow(typename Op::Out* acc, const typename Op::Item* x, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) acc[i] = Op::Join(acc[i], Wide<Op>(x[i]));
}

template <typename Op>
void TakeRows(typename Op::Out* acc, const typename Op::Item* const x[4], int64_t n) {
  const typename Op::Item *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const auto first = Op::Join(Wide<Op>(x0[i]), Wide<Op>(x1[i])), second = Op::Join(Wide<Op>(x2[i]), Wide<Op>(x3[i]));
    acc[i] = Op::Join(acc[i], Op::Join(first, second));
  }
}

}  // namespace jaxq8
