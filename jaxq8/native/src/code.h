// The instructions of ELEMENTWISE as they run: with values in place of registers, and without what need not be done for each
// block. A block is a piece of the indices whose values fit the first cache.
#pragma once

#include <vector>

#include "program.h"

namespace jaxq8 {

// How the values of an input come.
enum class Access {
  kNumber,   // one number for a block
  kNumbers,  // one for each row of a block
  kPointer,  // where they lie
  kCopied,   // copied to memory of the block, converted if need be
};

// What is known of an input or an output before the instructions are looked at.
struct Port {
  Access access;          // of an output: kPointer if a block's values can be written where they belong at once
  bool once;              // of an input: all blocks see the same values
  std::vector<char> over;  // of an output: for each input, whether it lies over that
};

struct Operation {
  Op op;
  Access access;    // of a load or a constant
  int slot;         // of the result
  int from[3];      // slots of the operands
  bool number[3];   // whether an operand is one number, for a block or a row
  bool by_rows;     // whether it is done for each row of a block by itself
  int port;         // of loads and stores
  int direct;       // the output that the result is written to at once, or -1
  float value;      // of constants
};

struct Code {
  std::vector<Operation> once, each;  // what is done before the first block, and for each
  int slots = 0;
};

constexpr int kMostOnce = 16;
constexpr int kMostSlots = kRegisters + kMostOnce;

Code Compile(const std::vector<Instruction>& instructions, const std::vector<Port>& inputs, const std::vector<Port>& outputs);

// compute.cc: a[i] = op(b[i], c[i], d[i]) for i < n; for add to min, b or c may be one number.
void Compute(const Operation& operation, float* a, const float* b, const float* c, const float* d, int64_t n);

inline bool IsLoad(Op op) { return op == kLoad || op == kLoadInt; }
inline bool IsConst(Op op) { return op == kConst || op == kConstInt; }
inline bool IsStore(Op op) { return op == kStore || op == kEncode || op == kStoreInt; }
inline bool TakesNumber(Op op) { return op >= kAdd && op <= kMin; }

}  // namespace jaxq8
