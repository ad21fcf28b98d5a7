// The instructions that make codes of an accumulator, or of float numbers, as one loop: a product, a sum, a largest and a smallest
// number, and the rounding, each of the first four where there is one. It computes what the instructions do one by one.
#pragma once

#include <optional>
#include <vector>

#include "code.h"
#include "walk.h"

namespace jaxq8 {

struct Scaled {
  int input, output;  // ports
  int factor = -1, offset = -1, least = -1, most = -1;  // slots
  bool factor_is_number = false, offset_is_number = false;
  bool by_rows = false;  // whether only the elements of a row lie next to each other
};

// Takes these instructions out of the code if they are all that is done for each block, and blocks, or at least rows, lie in one
// piece. `within` says that blocks are parts of rows, `row` how long a row is.
std::optional<Scaled> TakeScaled(Code& code, const std::vector<Walk>& inputs, const std::vector<Walk>& outputs, bool within,
                                 int64_t row);

// For n elements, the first of which has this position in its block; `at` tells where slots are.
void RunScaled(const Scaled& scaled, Dtype from, const uint8_t* in, Dtype to, uint8_t* out, int64_t position, int64_t n,
               const float* const* at);

}  // namespace jaxq8
