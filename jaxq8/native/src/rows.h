// Steps that run together, a few rows at a time: what one of them writes is in the cache when the next one reads it, and threads
// are woken once.
#pragma once

#include "action.h"
#include "row_group.h"

namespace jaxq8 {

std::unique_ptr<Action> MakeRows(const Program& program, size_t first, const RowGroup& group);

// reduce_rows.cc: sums and extremes of the rows begin..end of src, one below the other in dst.
using RowsReducer = void (*)(const uint8_t* src, uint8_t* dst, int64_t rows, int64_t n, int64_t row_stride, int64_t stride,
                             int64_t dst_stride);
RowsReducer ReducerOf(ReduceKind kind, Dtype dtype);

}  // namespace jaxq8
