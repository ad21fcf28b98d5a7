#include "reduce_kernels.h"
#include "rows.h"

namespace jaxq8 {
namespace {

template <typename Op>
void Rows(const uint8_t* src, uint8_t* dst, int64_t rows, int64_t n, int64_t row_stride, int64_t stride, int64_t dst_stride) {
  const typename Op::Item* from = reinterpret_cast<const typename Op::Item*>(src);
  typename Op::Out* to = reinterpret_cast<typename Op::Out*>(dst);
  for (int64_t row = 0; row < rows; ++row) {
    to[row * dst_stride] = static_cast<typename Op::Out>(ReduceLongRun<Op>(from + row * row_stride, n, stride));
  }
}

template <template <typename> typename Op>
RowsReducer Choose(Dtype dtype) {
  switch (dtype) {
    case Dtype::kU8: return Rows<Op<uint8_t>>;
    case Dtype::kS8: return Rows<Op<int8_t>>;
    case Dtype::kS32: return Rows<Op<int32_t>>;
    default: return Rows<Op<float>>;
  }
}

}  // namespace

RowsReducer ReducerOf(ReduceKind kind, Dtype dtype) {
  switch (kind) {
    case ReduceKind::kSum: return Choose<SumOf>(dtype);
    case ReduceKind::kMax: return Choose<LargestOf>(dtype);
    case ReduceKind::kMin: return Choose<SmallestOf>(dtype);
    default: return Rows<NanOf>;
  }
}

}  // namespace jaxq8
