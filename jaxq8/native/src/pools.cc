// MAXPOOL and SUMPOOL over channels-last eight-bit images. A unit of work is a row of places: at each, a few
// channels' largest or sum stays in registers while the window's elements go by.
#include <algorithm>
#include <cstring>
#include <limits>

#include "action.h"
#include "parallel.h"

namespace jaxq8 {
namespace {

// What a unit goes over: the elements of the window inside of the image, as offsets along three axes.
struct Taps {
  const uint8_t* base;
  int64_t n[3], step[3];

  int64_t inside() const { return n[0] * n[1] * n[2]; }

  template <typename F>
  void Each(const F& f) const {
    for (int64_t i = 0; i < n[0]; ++i)
      for (int64_t j = 0; j < n[1]; ++j)
        for (int64_t k = 0; k < n[2]; ++k) f(base + i * step[0] + j * step[1] + k * step[2]);
  }
};

template <typename T, int kWidth>
using Vector [[gnu::vector_size(kWidth * sizeof(T))]] = T;

template <typename T>
struct Largest {
  using Item = T;
  static constexpr int kWide = 64;

  static T Start(const Taps& taps, int64_t window, int64_t border) {
    return taps.inside() < window ? static_cast<T>(border) : std::numeric_limits<T>::min();
  }

  template <int kWidth>
  static void Several(const Taps& taps, int64_t c, T start, T* out) {
    Vector<T, kWidth> best = Vector<T, kWidth>{} + start;
    taps.Each([&](const uint8_t* at) {
      Vector<T, kWidth> row;
      std::memcpy(&row, at + c, sizeof row);
      best = row > best ? row : best;
    });
    std::memcpy(out + c, &best, sizeof best);
  }

  static T One(const Taps& taps, int64_t c, T start) {
    taps.Each([&](const uint8_t* at) { start = std::max(start, reinterpret_cast<const T*>(at)[c]); });
    return start;
  }
};

// Sums wrap as XLA's do; unsigned arithmetic says so.
template <typename T>
struct Sum {
  using Item = uint32_t;
  static constexpr int kWide = 32;

  static uint32_t Start(const Taps& taps, int64_t window, int64_t border) {
    return static_cast<uint32_t>(window - taps.inside()) * static_cast<uint32_t>(border);
  }

  template <int kWidth>
  static void Several(const Taps& taps, int64_t c, uint32_t start, uint32_t* out) {
    uint32_t sum[kWidth];  // so small that it is kept in registers
    std::fill(sum, sum + kWidth, start);
    taps.Each([&](const uint8_t* at) {
      const T* row = reinterpret_cast<const T*>(at) + c;
#pragma GCC unroll 1  // and vectorised, where a peeled loop would not be
      for (int x = 0; x < kWidth; ++x) sum[x] += static_cast<uint32_t>(static_cast<int32_t>(row[x]));
    });
    std::memcpy(out + c, sum, sizeof sum);
  }

  static uint32_t One(const Taps& taps, int64_t c, uint32_t start) {
    taps.Each([&](const uint8_t* at) { start += static_cast<uint32_t>(static_cast<int32_t>(reinterpret_cast<const T*>(at)[c])); });
    return start;
  }
};

// All channels of one place.
template <typename Kind>
void Channels(const Taps& taps, int64_t channels, int64_t stride, typename Kind::Item start, typename Kind::Item* out,
              int64_t out_stride) {
  int64_t c = 0;
  if (stride == 1 && out_stride == 1) {
    for (; c + Kind::kWide <= channels; c += Kind::kWide) Kind::template Several<Kind::kWide>(taps, c, start, out);
    for (; c + 16 <= channels; c += 16) Kind::template Several<16>(taps, c, start, out);
  }
  for (; c < channels; ++c) out[c * out_stride] = Kind::One(taps, c * stride, start);
}

class PoolAction final : public Action {
 public:
  PoolAction(const Program& program, const Pool& step)
      : src_(program.tensors[static_cast<size_t>(step.src)]), dst_(program.tensors[static_cast<size_t>(step.dst)]),
        largest_(step.largest), lowest_(step.lowest), has_border_(step.border >= 0) {
    if (has_border_) border_ = program.tensors[static_cast<size_t>(step.border)];
    // Always three spatial axes, the others of size 1. A single one is not the innermost: rows of places are what threads share.
    for (int i = 0; i < 3; ++i) {
      in_[i] = out_[i] = window_[i] = stride_[i] = dilation_[i] = 1;
      in_stride_[i] = out_stride_[i] = low_[i] = 0;
    }
    for (int from = 0; from < step.ns; ++from) {
      const int i = step.ns == 1 ? 1 : 3 - step.ns + from;
      in_[i] = src_.dims[from + 1];
      out_[i] = dst_.dims[from + 1];
      in_stride_[i] = src_.strides[from + 1];
      out_stride_[i] = dst_.strides[from + 1];
      window_[i] = step.window[from];
      stride_[i] = step.strides[from];
      dilation_[i] = step.dilation[from];
      low_[i] = step.low[from];
    }
    channels_ = src_.dims[step.ns + 1];
    c_stride_ = src_.strides[step.ns + 1];
    out_c_stride_ = dst_.strides[step.ns + 1];
  }

  void Run(const Call& call) const override {
    int64_t border = lowest_;
    if (!largest_) border = has_border_ ? *reinterpret_cast<const int32_t*>(call.At(border_)) : 0;
    const bool is_signed = src_.dtype == Dtype::kS8;
    if (largest_) {
      is_signed ? All<Largest<int8_t>>(call, border) : All<Largest<uint8_t>>(call, border);
    } else {
      is_signed ? All<Sum<int8_t>>(call, border) : All<Sum<uint8_t>>(call, border);
    }
  }

  std::string Describe() const override { return largest_ ? "largest of windows" : "sums of windows"; }

 private:
  template <typename Kind>
  void All(const Call& call, int64_t border) const {
    using Item = typename Kind::Item;
    const uint8_t* src = call.At(src_);
    Item* dst = reinterpret_cast<Item*>(call.At(dst_));
    const int64_t window = window_[0] * window_[1] * window_[2];
    const int64_t units = dst_.count() ? src_.dims[0] * out_[0] * out_[1] : 0;
    Parallel(units, dst_.count() * std::min<int64_t>(window, 4096), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit % out_[1], slice = unit / out_[1] % out_[0], image = unit / out_[1] / out_[0];
        Taps taps{src + image * src_.strides[0], {}, {}};
        Place(taps, 0, slice);
        Place(taps, 1, row);
        Item* to = dst + image * dst_.strides[0] + slice * out_stride_[0] + row * out_stride_[1];
        for (int64_t i = 0; i < out_[2]; ++i) {
          Taps here = taps;
          Place(here, 2, i);
          Channels<Kind>(here, channels_, c_stride_, Kind::Start(here, window, border), to + i * out_stride_[2], out_c_stride_);
        }
      }
    });
  }

  // Along one axis, the elements k of the window with 0 <= first + k * dilation < in.
  void Place(Taps& taps, int i, int64_t place) const {
    const int64_t first = place * stride_[i] - low_[i];
    const int64_t k = first >= 0 ? 0 : (-first + dilation_[i] - 1) / dilation_[i];
    const int64_t last = first >= in_[i] ? 0 : std::min(window_[i], (in_[i] - first + dilation_[i] - 1) / dilation_[i]);
    taps.n[i] = std::max<int64_t>(0, last - k);
    taps.step[i] = taps.n[i] > 1 ? dilation_[i] * in_stride_[i] : 0;
    if (taps.n[i]) taps.base += (first + k * dilation_[i]) * in_stride_[i];
  }

  Tensor src_, dst_, border_;
  bool largest_;
  int64_t lowest_;
  bool has_border_;
  int64_t in_[3], out_[3], in_stride_[3], out_stride_[3], window_[3], stride_[3], dilation_[3], low_[3];
  int64_t channels_, c_stride_, out_c_stride_;
};

}  // namespace

std::unique_ptr<Action> MakePool(const Program& program, const Pool& step) { return std::make_unique<PoolAction>(program, step); }

}  // namespace jaxq8
