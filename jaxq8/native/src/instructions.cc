// What the words of each instruction of ELEMENTWISE are, and that its registers hold what instructions expect.
#include "program.h"

namespace jaxq8 {
namespace {

constexpr OpInfo kLoads{OpInfo::kFloat, {OpInfo::kInput, OpInfo::kNone, OpInfo::kNone}};
constexpr OpInfo kStores{OpInfo::kOutput, {OpInfo::kFloat, OpInfo::kNone, OpInfo::kNone}};
constexpr OpInfo kUnary{OpInfo::kFloat, {OpInfo::kFloat, OpInfo::kNone, OpInfo::kNone}};
constexpr OpInfo kBinary{OpInfo::kFloat, {OpInfo::kFloat, OpInfo::kFloat, OpInfo::kNone}};
constexpr OpInfo kIntBinary{OpInfo::kInt, {OpInfo::kInt, OpInfo::kInt, OpInfo::kNone}};

}  // namespace

const OpInfo& InfoOf(Op op) {
  static constexpr OpInfo constant{OpInfo::kFloat, {OpInfo::kFloatBits, OpInfo::kNone, OpInfo::kNone}};
  static constexpr OpInfo int_constant{OpInfo::kInt, {OpInfo::kNumber, OpInfo::kNone, OpInfo::kNone}};
  static constexpr OpInfo int_load{OpInfo::kInt, {OpInfo::kInput, OpInfo::kNone, OpInfo::kNone}};
  static constexpr OpInfo int_store{OpInfo::kOutput, {OpInfo::kInt, OpInfo::kNone, OpInfo::kNone}};
  static constexpr OpInfo select{OpInfo::kEither, {OpInfo::kFloat, OpInfo::kEither, OpInfo::kEither}};
  static constexpr OpInfo to_int{OpInfo::kInt, {OpInfo::kFloat, OpInfo::kNone, OpInfo::kNone}};
  static constexpr OpInfo to_float{OpInfo::kFloat, {OpInfo::kInt, OpInfo::kNone, OpInfo::kNone}};
  switch (op) {
    case kLoad: return kLoads;
    case kConst: return constant;
    case kStore:
    case kEncode: return kStores;
    case kLoadInt: return int_load;
    case kStoreInt: return int_store;
    case kConstInt: return int_constant;
    case kSelect: return select;
    case kToInt: return to_int;
    case kToFloat: return to_float;
    case kIntAdd:
    case kIntSub:
    case kIntMul:
    case kIntMax:
    case kIntMin: return kIntBinary;
    case kAdd:
    case kSub:
    case kMul:
    case kDiv:
    case kMax:
    case kMin:
    case kNanIf:
    case kEq:
    case kNe:
    case kLt:
    case kLe:
    case kGt:
    case kGe:
    case kAnd:
    case kOr:
    case kPow: return kBinary;
    default: return kUnary;
  }
}

void CheckCode(const std::vector<Instruction>& code) {
  OpInfo::Word held[kRegisters] = {};
  const auto fail = [](size_t i, const char* text) { throw ProgramError("instruction " + std::to_string(i) + " " + text); };
  for (size_t i = 0; i < code.size(); ++i) {
    const Instruction& c = code[i];
    const OpInfo& info = InfoOf(c.op);
    const int operands[] = {c.b, c.c, c.d};
    OpInfo::Word either = OpInfo::kNone;
    for (int j = 0; j < 3; ++j) {
      const OpInfo::Word wanted = info.operands[j];
      if (wanted != OpInfo::kFloat && wanted != OpInfo::kInt && wanted != OpInfo::kEither) continue;
      const OpInfo::Word found = held[operands[j]];
      if (found == OpInfo::kNone) fail(i, "reads a register that nothing has written");
      if (wanted != OpInfo::kEither && found != wanted) fail(i, "reads a register of the other type");
      if (wanted != OpInfo::kEither) continue;
      if (either != OpInfo::kNone && either != found) fail(i, "selects from registers of two types");
      either = found;
    }
    if (info.result != OpInfo::kOutput) held[c.a] = info.result == OpInfo::kEither ? either : info.result;
  }
}

}  // namespace jaxq8
