// Groups of steps that can run row by row: all have the same rows, and a row of each needs of the others its own row alone.
#pragma once

#include <vector>

#include "lives.h"

namespace jaxq8 {

struct RowGroup {
  size_t steps = 0;               // how many, from the first one on; none if fewer than two fit together
  int64_t rows = 0;
  int64_t block = 0;              // rows that are done at once, whose tensors fit the second cache
  std::vector<Tensor> tensors;    // the program's; what only the group reads and writes lies in memory of its own
  int64_t own_bytes = 0;          // of that memory, for a block
};

constexpr int64_t kMostOwnBytes = 256 << 10;

RowGroup RowGroupAt(const Program& program, Lives& lives, size_t first, int threads);

}  // namespace jaxq8
