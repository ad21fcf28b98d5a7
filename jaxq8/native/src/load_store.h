// Items of tensors to and from the float32 numbers, or the bits of int32 numbers, that instructions compute with.
#pragma once

#include <type_traits>

#include "vector_math.h"
#include "walk.h"

namespace jaxq8 {

template <typename T>
struct AsFloat {
  static float Of(T item) { return static_cast<float>(item); }
};

template <typename T>
struct AsBits {
  static float Of(T item) { return FloatOf(static_cast<int32_t>(item)); }
};

// The values of the indices begin..begin + n.
template <typename T, template <typename> typename As>
void LoadItems(const Walk& walk, const uint8_t* base, int64_t begin, int64_t n, float* to) {
  const T* data = reinterpret_cast<const T*>(base);
  walk.Rows(begin, n, [&](int64_t at, int64_t stride, int64_t position, int64_t piece) {
    const T* from = data + at;
    float* out = to + position;
    if (stride == 1) {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i] = As<T>::Of(from[i]);
    } else if (stride == 0) {
      std::fill(out, out + piece, As<T>::Of(*from));
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i] = As<T>::Of(from[i * stride]);
    }
  });
}

// The bits of an int32 are those of a float: neither is converted.
inline void Load(bool as_float, const Walk& walk, const uint8_t* base, int64_t begin, int64_t n, float* to) {
  switch (walk.tensor.dtype) {
    case Dtype::kU8:
      return (as_float ? LoadItems<uint8_t, AsFloat> : LoadItems<uint8_t, AsBits>)(walk, base, begin, n, to);
    case Dtype::kS8:
      return (as_float ? LoadItems<int8_t, AsFloat> : LoadItems<int8_t, AsBits>)(walk, base, begin, n, to);
    case Dtype::kS32:
      if (as_float) return LoadItems<int32_t, AsFloat>(walk, base, begin, n, to);
      [[fallthrough]];
    default: return LoadItems<float, AsFloat>(walk, base, begin, n, to);
  }
}

// Between which numbers codes are. What compilers know of constants they would use to choose between results, which takes much
// longer than the largest and the smallest of two numbers.
template <typename T>
struct Limits {
  float least = Hidden(std::is_signed_v<T> ? -128.f : 0.f), most = Hidden(std::is_signed_v<T> ? 127.f : 255.f);
};

// The item that is stored for a number: itself, or its code.
template <typename T>
inline T ItemOf(float x, const Limits<T>& limits) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    x = x > limits.least ? x : limits.least;  // and NaN
    x = x < limits.most ? x : limits.most;
    return static_cast<T>(BitsOf(x + kRounder));  // the low byte is that of the integer, in two's complement
  }
}

template <typename T>
void StoreItems(const Walk& walk, uint8_t* base, int64_t begin, int64_t n, const float* from) {
  T* data = reinterpret_cast<T*>(base);
  const Limits<T> limits;
  walk.Rows(begin, n, [&](int64_t at, int64_t stride, int64_t position, int64_t piece) {
    T* out = data + at;
    const float* in = from + position;
    if (stride == 1) {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i] = ItemOf<T>(in[i], limits);
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i * stride] = ItemOf<T>(in[i], limits);
    }
  });
}

inline void Store(const Walk& walk, uint8_t* base, int64_t begin, int64_t n, const float* from) {
  switch (walk.tensor.dtype) {
    case Dtype::kU8: return StoreItems<uint8_t>(walk, base, begin, n, from);
    case Dtype::kS8: return StoreItems<int8_t>(walk, base, begin, n, from);
    default: return StoreItems<float>(walk, base, begin, n, from);
  }
}

}  // namespace jaxq8
