// COPY, UPDATE, TAKE and FILL: axes that lie one in the other become one, and the innermost runs as a row.
#include <algorithm>
#include <cstring>

#include "action.h"
#include "parallel.h"

namespace jaxq8 {
namespace {

// The axes of two views with the same dimensions, neighbours merged where both allow it. The last one is the row.
struct Axes {
  int rank = 0;
  int64_t dims[kMaxRank] = {}, a[kMaxRank] = {}, b[kMaxRank] = {};
  int64_t rows = 1, length = 1;

  Axes(const Tensor& first, const Tensor& second) {
    for (int i = 0; i < first.rank; ++i) {
      const int64_t dim = first.dims[i];
      if (dim == 1) continue;
      if (rank && a[rank - 1] == dim * first.strides[i] && b[rank - 1] == dim * second.strides[i]) {
        dims[rank - 1] *= dim;
        a[rank - 1] = first.strides[i];
        b[rank - 1] = second.strides[i];
      } else {
        dims[rank] = dim;
        a[rank] = first.strides[i];
        b[rank] = second.strides[i];
        ++rank;
      }
    }
    if (rank == 0) {
      rank = 1;
      dims[0] = a[0] = b[0] = 1;
    }
    for (int i = 0; i + 1 < rank; ++i) rows *= dims[i];
    length = dims[rank - 1];
  }

  // Where the row of a number begins in both, in elements.
  void Row(int64_t row, int64_t* in_a, int64_t* in_b) const {
    *in_a = *in_b = 0;
    for (int i = rank - 2; i >= 0; --i) {
      const int64_t index = row % dims[i];
      row /= dims[i];
      *in_a += index * a[i];
      *in_b += index * b[i];
    }
  }
};

template <typename T>
void CopyStrided(const uint8_t* src, uint8_t* dst, int64_t n, int64_t src_stride, int64_t dst_stride) {
  const T* from = reinterpret_cast<const T*>(src);
  T* to = reinterpret_cast<T*>(dst);
  for (int64_t i = 0; i < n; ++i) to[i * dst_stride] = from[i * src_stride];
}

class CopyAction final : public Action {
 public:
  CopyAction(const Tensor& src, const Tensor& dst) : src_(src), dst_(dst), axes_(src, dst), size_(SizeOf(src.dtype)) {}

  void Run(const Call& call) const override { Run(call.At(src_), call.At(dst_)); }

  // The same between other places.
  void Run(const uint8_t* src, uint8_t* dst) const {
    const int64_t from = axes_.a[axes_.rank - 1], to = axes_.b[axes_.rank - 1];
    if (src_.count() == 0) return;
    // One long row is cut into pieces, so that several threads copy it.
    const int64_t pieces = axes_.rows == 1 ? std::max<int64_t>(1, axes_.length * size_ >> 14) : 1;
    Parallel(axes_.rows * pieces, 2 * axes_.rows * axes_.length * size_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t a, b;
        axes_.Row(i / pieces, &a, &b);
        const int64_t first = axes_.length * (i % pieces) / pieces, last = axes_.length * (i % pieces + 1) / pieces;
        const uint8_t* row = src + (a + first * from) * size_;
        uint8_t* out = dst + (b + first * to) * size_;
        if (from == 1 && to == 1) {
          std::memmove(out, row, static_cast<size_t>((last - first) * size_));
        } else if (size_ == 1) {
          CopyStrided<uint8_t>(row, out, last - first, from, to);
        } else {
          CopyStrided<uint32_t>(row, out, last - first, from, to);
        }
      }
    });
  }

  std::string Describe() const override { return "copy"; }

 private:
  Tensor src_, dst_;
  Axes axes_;
  int64_t size_;
};

// A copy of a part of a larger tensor, which begins where numbers in tensors say.
class PlacedAction final : public Action {
 public:
  PlacedAction(const Program& program, const Placed& step)
      : into_(step.into), src_(program.tensors[static_cast<size_t>(step.src)]),
        dst_(program.tensors[static_cast<size_t>(step.dst)]), copy_(Part(src_, dst_), Part(dst_, src_)) {
    const Tensor &part = into_ ? src_ : dst_, &whole = into_ ? dst_ : src_;
    for (int i = 0; i < whole.rank; ++i) {
      const int id = step.starts[static_cast<size_t>(i)];
      if (id < 0) continue;
      starts_.push_back({program.tensors[static_cast<size_t>(id)], whole.dims[i] - part.dims[i], whole.strides[i] * SizeOf(whole.dtype)});
    }
  }

  void Run(const Call& call) const override {
    int64_t offset = 0;
    for (const Start& start : starts_) {
      const int64_t index = *reinterpret_cast<const int32_t*>(call.At(start.number));
      offset += std::clamp<int64_t>(index, 0, start.most) * start.bytes;
    }
    copy_.Run(call.At(src_) + (into_ ? 0 : offset), call.At(dst_) + (into_ ? offset : 0));
  }

  std::string Describe() const override { return into_ ? "update" : "take"; }

 private:
  struct Start {
    Tensor number;
    int64_t most, bytes;  // the largest index, and what it is multiplied by
  };

  // A tensor with the smaller one's dimensions.
  static Tensor Part(const Tensor& t, const Tensor& other) {
    Tensor out = t;
    for (int i = 0; i < t.rank; ++i) out.dims[i] = std::min(t.dims[i], other.dims[i]);
    return out;
  }

  bool into_;
  Tensor src_, dst_;
  CopyAction copy_;
  std::vector<Start> starts_;
};

class FillAction final : public Action {
 public:
  FillAction(const Tensor& dst, const Tensor* value, int64_t number) : dst_(dst), axes_(dst, dst), number_(number) {
    if (value) value_ = *value;
    has_value_ = value != nullptr;
  }

  void Run(const Call& call) const override {
    if (dst_.count() == 0) return;
    int64_t number = number_;
    if (has_value_) {
      const uint8_t* at = call.At(value_);
      number = value_.dtype == Dtype::kU8   ? *at
               : value_.dtype == Dtype::kS8 ? *reinterpret_cast<const int8_t*>(at)
                                            : *reinterpret_cast<const int32_t*>(at);
    }
    if (dst_.dtype == Dtype::kF32) return Rows(call, static_cast<float>(number));
    if (dst_.dtype == Dtype::kS32) return Rows(call, static_cast<int32_t>(number));
    return Rows(call, static_cast<uint8_t>(number));
  }

  std::string Describe() const override { return "fill"; }

 private:
  template <typename T>
  void Rows(const Call& call, T value) const {
    T* dst = reinterpret_cast<T*>(call.At(dst_));
    const int64_t stride = axes_.a[axes_.rank - 1];
    Parallel(axes_.rows, axes_.rows * axes_.length * static_cast<int64_t>(sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t a, b;
        axes_.Row(i, &a, &b);
        T* row = dst + a;
        if (stride == 1) {
          std::fill(row, row + axes_.length, value);
        } else {
          for (int64_t j = 0; j < axes_.length; ++j) row[j * stride] = value;
        }
      }
    });
  }

  Tensor dst_, value_;
  Axes axes_;
  int64_t number_;
  bool has_value_;
};

}  // namespace

std::unique_ptr<Action> MakeCopy(const Tensor& src, const Tensor& dst) { return std::make_unique<CopyAction>(src, dst); }

std::unique_ptr<Action> MakePlaced(const Program& program, const Placed& step) {
  return std::make_unique<PlacedAction>(program, step);
}

std::unique_ptr<Action> MakeFill(const Program& program, const Fill& step) {
  const Tensor* value = step.value < 0 ? nullptr : &program.tensors[static_cast<size_t>(step.value)];
  return std::make_unique<FillAction>(program.tensors[static_cast<size_t>(step.dst)], value, step.number);
}

}  // namespace jaxq8
