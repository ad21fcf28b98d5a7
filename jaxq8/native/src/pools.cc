// MAXPOOL and SUMPOOL over channels-last eight-bit images. A unit of work is one place of the window and a block of channels:
// the largest or the sum stays in registers while the window's elements go by.
#include <algorithm>
#include <cstring>

#include "action.h"
#include "parallel.h"

namespace jaxq8 {
namespace {

constexpr int64_t kBlock = 128;  // channels

// What a unit goes over: the elements of the window inside of the image, as offsets along three axes.
struct Taps {
  const uint8_t* base;
  int64_t n[3], step[3];
  int64_t inside, all;
};

struct Largest {
  template <typename T>
  static void Block(const Taps& taps, int64_t c, int64_t c_stride, int64_t border, uint8_t* out, int64_t out_stride) {
    T best[kBlock];
    const T start = taps.inside < taps.all ? static_cast<T>(border) : std::is_signed_v<T> ? static_cast<T>(-128) : T{0};
    std::fill(best, best + kBlock, start);
    for (int64_t i = 0; i < taps.n[0]; ++i)
      for (int64_t j = 0; j < taps.n[1]; ++j)
        for (int64_t k = 0; k < taps.n[2]; ++k) {
          const T* row = reinterpret_cast<const T*>(taps.base + i * taps.step[0] + j * taps.step[1] + k * taps.step[2]);
          if (c == kBlock && c_stride == 1) {
            for (int64_t x = 0; x < kBlock; ++x) best[x] = row[x] > best[x] ? row[x] : best[x];
          } else if (c_stride == 1) {
            for (int64_t x = 0; x < c; ++x) best[x] = row[x] > best[x] ? row[x] : best[x];
          } else {
            for (int64_t x = 0; x < c; ++x) best[x] = std::max(best[x], row[x * c_stride]);
          }
        }
    T* to = reinterpret_cast<T*>(out);
    if (out_stride == 1) {
      std::memcpy(to, best, static_cast<size_t>(c));
    } else {
      for (int64_t x = 0; x < c; ++x) to[x * out_stride] = best[x];
    }
  }
};

struct Sum {
  template <typename T>
  static void Block(const Taps& taps, int64_t c, int64_t c_stride, int64_t border, uint8_t* out, int64_t out_stride) {
    int32_t sum[kBlock];
    // Sums wrap as XLA's do; unsigned arithmetic says so.
    const uint32_t start = static_cast<uint32_t>(taps.all - taps.inside) * static_cast<uint32_t>(border);
    std::fill(sum, sum + kBlock, static_cast<int32_t>(start));
    for (int64_t i = 0; i < taps.n[0]; ++i)
      for (int64_t j = 0; j < taps.n[1]; ++j)
        for (int64_t k = 0; k < taps.n[2]; ++k) {
          const T* row = reinterpret_cast<const T*>(taps.base + i * taps.step[0] + j * taps.step[1] + k * taps.step[2]);
          if (c == kBlock && c_stride == 1) {
            for (int64_t x = 0; x < kBlock; ++x) sum[x] = Add(sum[x], row[x]);
          } else {
            for (int64_t x = 0; x < c; ++x) sum[x] = Add(sum[x], row[x * c_stride]);
          }
        }
    int32_t* to = reinterpret_cast<int32_t*>(out);
    for (int64_t x = 0; x < c; ++x) to[x * out_stride] = sum[x];
  }

  static int32_t Add(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
};

class PoolAction final : public Action {
 public:
  PoolAction(const Program& program, const Pool& step)
      : src_(program.tensors[static_cast<size_t>(step.src)]), dst_(program.tensors[static_cast<size_t>(step.dst)]),
        largest_(step.largest), lowest_(step.lowest), has_border_(step.border >= 0) {
    if (has_border_) border_ = program.tensors[static_cast<size_t>(step.border)];
    // Always three spatial axes; the first ones are missing ones of size 1.
    const int skip = 3 - step.ns;
    for (int i = 0; i < 3; ++i) {
      const int from = i - skip;
      in_[i] = from < 0 ? 1 : src_.dims[from + 1];
      out_[i] = from < 0 ? 1 : dst_.dims[from + 1];
      in_stride_[i] = from < 0 ? 0 : src_.strides[from + 1];
      out_stride_[i] = from < 0 ? 0 : dst_.strides[from + 1];
      window_[i] = from < 0 ? 1 : step.window[from];
      stride_[i] = from < 0 ? 1 : step.strides[from];
      dilation_[i] = from < 0 ? 1 : step.dilation[from];
      low_[i] = from < 0 ? 0 : step.low[from];
    }
    channels_ = src_.dims[step.ns + 1];
    c_stride_ = src_.strides[step.ns + 1];
    out_c_stride_ = dst_.strides[step.ns + 1];
    blocks_ = (channels_ + kBlock - 1) / kBlock;
  }

  void Run(const Call& call) const override {
    int64_t border = lowest_;
    if (!largest_) border = has_border_ ? *reinterpret_cast<const int32_t*>(call.At(border_)) : 0;
    const bool is_signed = src_.dtype == Dtype::kS8;
    if (largest_) {
      is_signed ? All<Largest, int8_t>(call, border) : All<Largest, uint8_t>(call, border);
    } else {
      is_signed ? All<Sum, int8_t>(call, border) : All<Sum, uint8_t>(call, border);
    }
  }

  std::string Describe() const override { return largest_ ? "largest of windows" : "sums of windows"; }

 private:
  template <typename Kind, typename T>
  void All(const Call& call, int64_t border) const {
    const uint8_t* src = call.At(src_);
    uint8_t* dst = call.At(dst_);
    const int64_t size = SizeOf(dst_.dtype), window = window_[0] * window_[1] * window_[2];
    const int64_t units = src_.dims[0] * out_[0] * out_[1] * out_[2] * blocks_;
    const int64_t work = dst_.count() * std::min<int64_t>(window, 4096);
    Parallel(units, work, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        int64_t rest = unit;
        const int64_t block = rest % blocks_;
        rest /= blocks_;
        int64_t place[3];
        for (int i = 2; i >= 0; --i) {
          place[i] = rest % out_[i];
          rest /= out_[i];
        }
        Taps taps{src + rest * src_.strides[0] + block * kBlock * c_stride_, {}, {}, 1, window};
        int64_t to = rest * dst_.strides[0] + block * kBlock * out_c_stride_;
        for (int i = 0; i < 3; ++i) {
          // The elements k of the window with 0 <= first + k * dilation < in.
          const int64_t first = place[i] * stride_[i] - low_[i];
          const int64_t k = first >= 0 ? 0 : (-first + dilation_[i] - 1) / dilation_[i];
          const int64_t last = first >= in_[i] ? 0 : std::min(window_[i], (in_[i] - first + dilation_[i] - 1) / dilation_[i]);
          taps.n[i] = std::max<int64_t>(0, last - k);
          taps.step[i] = taps.n[i] > 1 ? dilation_[i] * in_stride_[i] : 0;
          taps.inside *= taps.n[i];
          if (taps.n[i]) taps.base += (first + k * dilation_[i]) * in_stride_[i];
          to += place[i] * out_stride_[i];
        }
        const int64_t c = std::min(kBlock, channels_ - block * kBlock);
        Kind::template Block<T>(taps, c, c_stride_, border, dst + to * size, out_c_stride_);
      }
    });
  }

  Tensor src_, dst_, border_;
  bool largest_;
  int64_t lowest_;
  bool has_border_;
  int64_t in_[3], out_[3], in_stride_[3], out_stride_[3], window_[3], stride_[3], dilation_[3], low_[3];
  int64_t channels_, c_stride_, out_c_stride_, blocks_;
};

}  // namespace

std::unique_ptr<Action> MakePool(const Program& program, const Pool& step) { return std::make_unique<PoolAction>(program, step); }

}  // namespace jaxq8
