// A region program: the words that come in, checked and turned into structures. Nothing here knows oneDNN, XLA or threads.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace jaxq8 {

// What is wrong with a program, in words. The functions that C and XLA see catch it and hand the words on.
struct ProgramError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Dtype : int64_t { kU8 = 0, kS8 = 1, kS32 = 2, kF32 = 3 };

inline int64_t SizeOf(Dtype dtype) { return dtype == Dtype::kU8 || dtype == Dtype::kS8 ? 1 : 4; }

constexpr int kMaxRank = 8;
constexpr int kArena = -1;    // the place of a tensor in the arena
// Places that are never in a program's words: what a step needs for itself, and what a group of steps has for some rows.
constexpr int kScratch = -2;
constexpr int kOwn = -3;

// A view: element i... lies offset + sum(i * strides) elements after the beginning of its buffer.
struct Tensor {
  Dtype dtype = Dtype::kU8;
  int place = kArena;
  int64_t offset = 0;  // in bytes
  int rank = 0;
  int64_t dims[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};
  int64_t row_bytes = 0;  // in kOwn, where the beginning of the first row that is there is the tensor's

  int64_t count() const;               // elements; 0 if an axis is empty
  bool dense() const;                  // in order and without gaps, axes of size 1 aside
  bool same_dims(const Tensor& other) const;
  bool same_view(const Tensor& other) const;
  int64_t extent() const;                      // bytes from its beginning to behind its last element
  bool overlaps(const Tensor& other) const;    // whether the two lie in the same bytes, gaps counted in
  Tensor densely(int new_place, int64_t new_offset) const;  // the same tensor in order and without gaps, elsewhere
};

enum class Function { kNone, kGeluErf, kGeluTanh, kSwish, kLogistic, kTanh, kHardSwish };

struct Contract {
  int src, weights, dst, mult, offset, residual, rescale, shift;
  Function function;
  float lo, hi;
  int kind, ns;
  int64_t kernel[3], strides[3], dilation[3], low[3], high[3];
  int64_t groups;
  std::vector<int64_t> problem;
};

enum Op : int64_t {
  kLoad, kConst, kAdd, kSub, kMul, kDiv, kMax, kMin, kNeg, kAbs, kExp, kLogistic, kTanh, kErf, kSqrt, kRsqrt, kStore, kEncode,
  kNanIf, kLoadInt, kStoreInt, kConstInt, kSelect, kEq, kNe, kLt, kLe, kGt, kGe, kAnd, kOr, kPow, kIntAdd, kIntSub, kIntMul,
  kIntMax, kIntMin, kRound, kFloor, kCeil, kSign, kLog, kLog1p, kExpm1, kIsFinite, kNot, kToInt, kToFloat, kOps
};

// What the words of an instruction are; instructions.cc has the table.
struct OpInfo {
  enum Word : char { kNone, kFloat, kInt, kEither, kInput, kOutput, kFloatBits, kNumber };  // the first three: registers
  Word result;       // what is written: a register, an output for stores
  Word operands[3];  // kEither: of the same type as the result
};
const OpInfo& InfoOf(Op op);

constexpr int kRegisters = 16;

struct Instruction {
  Op op;
  int a, b, c, d;
  int32_t value;  // of constants: the bits
};

struct Elementwise {
  int rank;
  int64_t dims[kMaxRank];
  std::vector<int> inputs, outputs;
  std::vector<Instruction> code;
};

struct Copy { int src, dst; };

struct Fill { int dst, value; int64_t number; };

struct Pool {
  bool largest;  // else the sum
  int src, dst, ns;
  int64_t window[3], strides[3], dilation[3], low[3], high[3];
  int64_t lowest;  // of a largest: the code of borders
  int border;      // of a sum: the tensor with the code of borders, or -1
};

enum class ReduceKind { kSum, kMax, kMin, kNan };

struct Reduce { int src, dst; ReduceKind kind; };

struct Product { int a, b, dst; };

// A copy into a part of dst, or out of a part of src, that begins at a place which is found in the run.
struct Placed {
  bool into;  // UPDATE, else TAKE
  int src, dst;
  std::vector<int> starts;  // for each axis a tensor of one int32, or -1 for 0
};

struct Program;

// A program that runs several times. For each of its arguments a tensor, whether that has an entry for each time, and the result
// that is handed on to the argument, or -1; for each result a tensor, and the one that it lies in every other time, or -1 if the
// tensor has an entry for each time.
struct Loop {
  std::shared_ptr<const Program> body;
  int64_t length;
  bool reverse;
  std::vector<int> inputs, handed, outputs, spares;
  std::vector<char> sliced;
};

using Step = std::variant<Contract, Elementwise, Copy, Fill, Pool, Reduce, Product, Placed, Loop>;

// A result that begins with what an argument holds. Tensors lie in the result alone.
struct Alias { int argument, result; };

// What the program expects of an argument or a result.
struct Need {
  bool used = false;
  Dtype dtype = Dtype::kU8;
  int64_t bytes = 0;
};

struct Program {
  int n_args = 0, n_results = 0;
  int64_t arena_bytes = 0;
  std::vector<Tensor> tensors;
  std::vector<Step> steps;
  std::vector<Need> needs;  // arguments, then results
  std::vector<Alias> aliases;
};

// A contraction whose packed layout is asked for.
struct Problem {
  int ns;
  int64_t batch, spatial[3], c_in, kernel[3], c_out, strides[3], dilation[3], low[3], high[3], groups;
};

// Both throw ProgramError.
Program Parse(const int64_t* words, size_t n);
Problem ParseProblem(const int64_t* words, size_t n);

// instructions.cc: that registers are written before they are read, and hold what instructions expect; throws ProgramError.
void CheckCode(const std::vector<Instruction>& code);

// check.cc: that the tensors of a step fit together; throws ProgramError.
void CheckStep(const Program& program, const Step& step);
const char* NameOf(const Step& step);

// How many places a window has along an axis; negative if it fits nowhere.
inline int64_t Places(int64_t size, int64_t low, int64_t high, int64_t window, int64_t dilation, int64_t stride) {
  const int64_t room = size + low + high - ((window - 1) * dilation + 1);
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace jaxq8
