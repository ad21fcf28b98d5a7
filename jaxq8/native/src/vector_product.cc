// PRODUCT of vectors and matrices in float32: one row, as a decoder's attention has for its one new token. All time goes into
// reading the matrices, so they are read in the order in which they lie: the heads of a token one after the other.
#include <algorithm>

#include "action.h"
#include "parallel.h"

namespace jaxq8 {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kStrip = 256;  // columns whose sums stay in the first cache

// The products along one axis of many, such as heads: product i reads a[i * a_stride + k * a_step] and so on.
struct Strides {
  int64_t n, k;                            // columns of the result, and terms of each sum
  int64_t a_step, b_step, b_column, column;  // between terms of a and of b, between columns of b and of the result
  int64_t products, a, b, dst;              // how many products, and between them
};

// Sums of neighbouring terms: both vectors lie without gaps.
float Dot(const float* a, const float* b, int64_t k) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += a[i + j] * b[i + j];
  }
  for (int64_t j = 0; i + j < k; ++j) sums[j] += a[i + j] * b[i + j];
  for (int64_t half = kLanes / 2; half; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

// All products, columns first..last.
void ByTerms(const Strides& s, const float* a, const float* b, float* dst, int64_t first, int64_t last) {
  for (int64_t column = first; column < last; ++column) {
    for (int64_t i = 0; i < s.products; ++i) {
      dst[i * s.dst + column * s.column] = Dot(a + i * s.a, b + i * s.b + column * s.b_column, s.k);
    }
  }
}

// Adds rows of a matrix whose columns are neighbours, four of them at once.
void AddRows(float* sums, const float* rows, int64_t step, const float* factors, int64_t factor_step, int64_t count, int64_t n) {
  if (count == 4) {
    const float x = factors[0], y = factors[factor_step], z = factors[2 * factor_step], w = factors[3 * factor_step];
    const float *p = rows, *q = rows + step, *r = rows + 2 * step, *t = rows + 3 * step;
#pragma GCC ivdep
    for (int64_t j = 0; j < n; ++j) sums[j] += (x * p[j] + y * q[j]) + (z * r[j] + w * t[j]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float x = factors[i * factor_step];
    const float* row = rows + i * step;
#pragma GCC ivdep
    for (int64_t j = 0; j < n; ++j) sums[j] += x * row[j];
  }
}

// All columns, products first..last.
void ByColumns(const Strides& s, const float* a, const float* b, float* dst, int64_t first, int64_t last) {
  for (int64_t strip = 0; strip < s.n; strip += kStrip) {
    const int64_t n = std::min(kStrip, s.n - strip);
    for (int64_t i = first; i < last; ++i) std::fill_n(dst + i * s.dst + strip, n, 0.f);
    for (int64_t term = 0; term < s.k; term += 4) {
      const int64_t count = std::min<int64_t>(4, s.k - term);
      for (int64_t i = first; i < last; ++i) {
        AddRows(dst + i * s.dst + strip, b + i * s.b + term * s.b_step + strip, s.b_step, a + i * s.a + term * s.a_step, s.a_step,
                count, n);
      }
    }
  }
}

class VectorProduct final : public Action {
 public:
  // The row of the result is axis rank - 2, or rank - 1 if `turned`, where a is the matrix and b the vector.
  VectorProduct(const Tensor& a, const Tensor& b, const Tensor& dst, bool turned) : a_(a), b_(b), dst_(dst) {
    if (turned) {
      for (Tensor* t : {&a_, &b_, &dst_}) {
        std::swap(t->dims[t->rank - 2], t->dims[t->rank - 1]);
        std::swap(t->strides[t->rank - 2], t->strides[t->rank - 1]);
      }
      std::swap(a_, b_);
    }
    const int m = dst_.rank - 2, n = dst_.rank - 1;
    s_.n = dst_.dims[n];
    s_.k = b_.dims[m];
    s_.a_step = s_.k == 1 ? 1 : a_.strides[n];
    s_.b_step = s_.k == 1 ? 1 : b_.strides[m];
    s_.b_column = s_.n == 1 ? 1 : b_.strides[n];
    s_.column = s_.n == 1 ? 1 : dst_.strides[n];
    bytes_ = (a_.count() + b_.count() + dst_.count()) * SizeOf(Dtype::kF32);
    s_.products = 1;
    for (int i = 0; i < m; ++i) {
      if (dst_.dims[i] == 1) continue;
      outer_ *= s_.products;
      inner_ = i;
      s_.products = dst_.dims[i];
      s_.a = StrideOf(a_, i);
      s_.b = StrideOf(b_, i);
      s_.dst = dst_.strides[i];
    }
  }

  // Whether all is one row of float32, and either the terms or the columns lie next to each other.
  bool Fits() const {
    if (dst_.dtype != Dtype::kF32 || dst_.dims[dst_.rank - 2] != 1) return false;
    return ByTermsFits() || (s_.b_column == 1 && s_.column == 1);
  }

  void Run(const Call& call) const override {
    const float* a = reinterpret_cast<const float*>(call.At(a_));
    const float* b = reinterpret_cast<const float*>(call.At(b_));
    float* dst = reinterpret_cast<float*>(call.At(dst_));
    // Threads share the columns, of which each is read for all heads, or the heads, of which each has sums of its own.
    const auto part = ByTermsFits() ? ByTerms : ByColumns;
    const int64_t length = ByTermsFits() ? s_.n : s_.products;
    Parallel(outer_ * length, bytes_, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t first = begin % length, last = std::min(length, first + end - begin);
        int64_t rest = begin / length, in_a = 0, in_b = 0, in_dst = 0;
        for (int i = inner_ - 1; i >= 0; --i) {
          const int64_t index = rest % dst_.dims[i];
          rest /= dst_.dims[i];
          in_a += index * StrideOf(a_, i);
          in_b += index * StrideOf(b_, i);
          in_dst += index * dst_.strides[i];
        }
        part(s_, a + in_a, b + in_b, dst + in_dst, first, last);
        begin += last - first;
      }
    });
  }

  std::string Describe() const override { return ByTermsFits() ? "a row, by terms" : "a row, by columns"; }

 private:
  bool ByTermsFits() const { return s_.a_step == 1 && s_.b_step == 1; }

  static int64_t StrideOf(const Tensor& t, int axis) { return t.dims[axis] == 1 ? 0 : t.strides[axis]; }

  Tensor a_, b_, dst_;
  Strides s_{};
  int inner_ = 0;  // the last axis of several products; those of the axes before it are done one after the other
  int64_t outer_ = 1, bytes_ = 0;
};

}  // namespace

std::unique_ptr<Action> MakeVectorProduct(const Tensor& a, const Tensor& b, const Tensor& dst) {
  for (bool turned : {false, true}) {
    auto action = std::make_unique<VectorProduct>(a, b, dst, turned);
    if (action->Fits()) return action;
  }
  return nullptr;
}

}  // namespace jaxq8
