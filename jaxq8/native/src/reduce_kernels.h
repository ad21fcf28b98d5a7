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

// Lets NaN pass: an item that is NaN is taken, and no comparison takes another after it.
template <typename A>
inline A Passes(A item, A chosen) {
  return item != item ? item : chosen;
}

template <typename T, bool kLargest>
struct ExtremeOf {
  using Item = T;
  using Out = T;
  using Total = T;
  using Limits = std::numeric_limits<T>;
  static constexpr bool kRounds = false;
  static constexpr int kLanes = 64 / sizeof(T);
  static T Start() {
    if (std::is_floating_point_v<T>) return kLargest ? -Limits::infinity() : Limits::infinity();
    return kLargest ? Limits::min() : Limits::max();
  }
  template <typename A>
  static A Join(A a, A b) {
    if constexpr (kLargest) {
      const A chosen = b > a ? b : a;
      return Passes(b, chosen);
    } else {
      const A chosen = b < a ? b : a;
      return Passes(b, chosen);
    }
  }
};

template <typename T>
using LargestOf = ExtremeOf<T, true>;
template <typename T>
using SmallestOf = ExtremeOf<T, false>;

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
inline Lanes<typename Op::Out, Op::kLanes> LanesAt(const typename Op::Item* from) {
  Lanes<typename Op::Out, Op::kLanes> items;
  std::memcpy(&items, from, sizeof items);
  if constexpr (std::is_same_v<Op, NanOf>) items *= 0.f;
  return items;
}

// All lanes joined, half with half.
template <typename Op, int kLanes>
inline typename Op::Out Fold(Lanes<typename Op::Out, kLanes> lanes) {
  constexpr int half = kLanes / 2;
  Lanes<typename Op::Out, half> low, high;
  std::memcpy(&low, &lanes, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char*>(&lanes) + sizeof low, sizeof high);
  if constexpr (half == 1) {
    return Op::Join(low[0], high[0]);
  } else {
    return Fold<Op, half>(Op::Join(low, high));
  }
}

template <typename T>
using SignedOf = std::conditional_t<sizeof(T) == 1, int8_t, int32_t>;

// Fewer neighbours than there are lanes: those in the last lanes of the vector that ends with them.
template <typename Op>
inline Lanes<typename Op::Out, Op::kLanes> LastLanes(const typename Op::Item* end, int64_t n) {
  using Signed = SignedOf<typename Op::Out>;
  Lanes<Signed, Op::kLanes> lane;
  for (int i = 0; i < Op::kLanes; ++i) lane[i] = static_cast<Signed>(i);
  const Lanes<typename Op::Out, Op::kLanes> start = Lanes<typename Op::Out, Op::kLanes>{} + Op::Start();
  return lane >= static_cast<Signed>(Op::kLanes - n) ? LanesAt<Op>(end - Op::kLanes) : start;
}

// A run of neighbours, at least as many as there are lanes. Floats are summed in 64 sums, so a run of a few thousand rounds as
// little as sums in pairs do.
template <typename Op>
typename Op::Out ReduceLanes(const typename Op::Item* x, int64_t n) {
  using Out = typename Op::Out;
  constexpr int64_t lanes = Op::kLanes;
  Lanes<Out, lanes> a = Lanes<Out, lanes>{} + Op::Start(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    a = Op::Join(a, LanesAt<Op>(x + i));
    b = Op::Join(b, LanesAt<Op>(x + i + lanes));
    c = Op::Join(c, LanesAt<Op>(x + i + 2 * lanes));
    d = Op::Join(d, LanesAt<Op>(x + i + 3 * lanes));
  }
  for (; i + lanes <= n; i += lanes) a = Op::Join(a, LanesAt<Op>(x + i));
  if (i < n) b = Op::Join(b, LastLanes<Op>(x + n, n - i));
  return Fold<Op, Op::kLanes>(Op::Join(Op::Join(a, b), Op::Join(c, d)));
}

// A run of neighbours. Sums of codes become wide on the way; compilers know how, as the order of integers does not matter.
template <typename Op>
typename Op::Out ReduceRun(const typename Op::Item* x, int64_t n) {
  using Out = typename Op::Out;
  constexpr int64_t lanes = Op::kLanes;
  if constexpr (sizeof(typename Op::Item) == sizeof(Out)) {
    if (n >= lanes) return ReduceLanes<Op>(x, n);
  }
  Out result = Op::Start();
  for (int64_t i = 0; i < n; ++i) result = Op::Join(result, Wide<Op>(x[i]));
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
