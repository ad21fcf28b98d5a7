#include "rows.h"

#include <algorithm>
#include <variant>

#include "elementwise.h"
#include "parallel.h"

namespace jaxq8 {
namespace {

// A reduction of each row to a number.
class RowsReduce {
 public:
  RowsReduce(const Tensor& src, const Tensor& dst, ReduceKind kind, int64_t rows)
      : src_(src), dst_(dst), reducer_(ReducerOf(kind, src.dtype)), n_(src.count() / rows) {
    int64_t before = 1;
    for (int axis = 0; axis < src.rank; ++axis) {
      if (src.dims[axis] == 1) continue;
      if (before < rows) {
        row_stride_ = src.strides[axis];
        dst_stride_ = dst.strides[axis];
        before *= src.dims[axis];
      } else {
        stride_ = src.strides[axis];
      }
    }
  }

  int64_t bytes() const { return src_.count() * SizeOf(src_.dtype); }

  void Run(const Call& call, int64_t begin, int64_t end) const {
    reducer_(call.At(src_) + begin * row_stride_ * SizeOf(src_.dtype), call.At(dst_) + begin * dst_stride_ * SizeOf(dst_.dtype),
             end - begin, n_, row_stride_, stride_, dst_stride_);
  }

 private:
  Tensor src_, dst_;
  RowsReducer reducer_;
  int64_t n_, row_stride_ = 0, stride_ = 1, dst_stride_ = 0;
};

class RowsAction final : public Action {
 public:
  RowsAction(const Program& program, size_t first, const RowGroup& group) : rows_(group.rows), block_(group.block) {
    const auto at = [&](int id) -> const Tensor& { return group.tensors[static_cast<size_t>(id)]; };
    for (size_t i = first; i < first + group.steps; ++i) {
      const Step& step = program.steps[i];
      if (const auto* elementwise = std::get_if<Elementwise>(&step)) {
        ElementwiseKernel kernel(group.tensors, *elementwise, rows_);
        const int64_t n = kernel.count() / rows_;
        bytes_ += kernel.bytes();
        parts_.push_back({std::move(kernel), n});
      } else {
        const Reduce& reduce = std::get<Reduce>(step);
        RowsReduce part(at(reduce.src), at(reduce.dst), reduce.kind, rows_);
        bytes_ += part.bytes();
        parts_.push_back({std::move(part), 0});
      }
    }
  }

  void Run(const Call& call) const override {
    Parallel(rows_, bytes_, [&](int64_t begin, int64_t end) {
      alignas(64) uint8_t own[kMostOwnBytes];
      Call here = call;
      here.own = own;
      for (int64_t row = begin; row < end; row += block_) {
        const int64_t last = std::min(end, row + block_);
        here.row = row;
        for (const Part& part : parts_) {
          if (const auto* kernel = std::get_if<ElementwiseKernel>(&part.kernel)) {
            kernel->Run(here, row * part.n, last * part.n);
          } else {
            std::get<RowsReduce>(part.kernel).Run(here, row, last);
          }
        }
      }
    });
  }

  std::string Describe() const override { return std::to_string(parts_.size()) + " steps row by row"; }

 private:
  struct Part {
    std::variant<ElementwiseKernel, RowsReduce> kernel;
    int64_t n;  // indices in a row
  };

  std::vector<Part> parts_;
  int64_t rows_, block_, bytes_ = 0;
};

}  // namespace

std::unique_ptr<Action> MakeRows(const Program& program, size_t first, const RowGroup& group) {
  return std::make_unique<RowsAction>(program, first, group);
}

}  // namespace jaxq8
