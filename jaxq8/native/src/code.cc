#include "code.h"

#include <algorithm>
#include <array>

#include "vector_math.h"

namespace jaxq8 {
namespace {

constexpr int kNobody = -1;

// An instruction with values as operands. Every value has one instruction, so a value's number is its instruction's.
struct Node {
  Instruction instruction;
  std::array<int, 3> operands = {kNobody, kNobody, kNobody};
  int last_use = kNobody;  // the last instruction that reads its value
  Access access = Access::kCopied;
  bool once = false;
  int direct = kNobody;
};

bool IsNumber(Access access) { return access == Access::kNumber || access == Access::kNumbers; }

bool Reads(OpInfo::Word word) { return word == OpInfo::kFloat || word == OpInfo::kInt || word == OpInfo::kEither; }

class Compiler {
 public:
  Compiler(const std::vector<Port>& inputs, const std::vector<Port>& outputs, bool shares)
      : inputs_(inputs), outputs_(outputs), shares_(shares) {}

  Code Run(const std::vector<Instruction>& instructions) {
    ReadNodes(instructions);
    ChooseNumbers();
    ChoosePointers();
    ChooseDirect();
    return Emit();
  }

 private:
  Node& At(int i) { return nodes_[static_cast<size_t>(i)]; }
  int size() const { return static_cast<int>(nodes_.size()); }

  bool Over(int input, int output) const {
    return outputs_[static_cast<size_t>(output)].over[static_cast<size_t>(input)] != 0;
  }

  bool OverAny(int input) const {
    for (int o = 0; o < static_cast<int>(outputs_.size()); ++o) {
      if (Over(input, o)) return true;
    }
    return false;
  }

  void ReadNodes(const std::vector<Instruction>& instructions) {
    int held[kRegisters];
    std::fill(held, held + kRegisters, kNobody);
    for (const Instruction& c : instructions) {
      const OpInfo& info = InfoOf(c.op);
      const int registers[] = {c.b, c.c, c.d};
      Node node{c};
      for (size_t j = 0; j < 3; ++j) {
        if (Reads(info.operands[j])) node.operands[j] = held[registers[j]];
      }
      int value = Same(c);
      if (value == kNobody) {
        value = size();
        for (int operand : node.operands) {
          if (operand != kNobody) At(operand).last_use = value;
        }
        if (IsLoad(c.op)) {
          const Port& port = inputs_[static_cast<size_t>(c.b)];
          node.access = port.access;
          node.once = port.once && !OverAny(c.b);
        } else if (IsConst(c.op)) {
          node.access = Access::kNumber;
          node.once = true;
        }
        nodes_.push_back(node);
      }
      if (info.result != OpInfo::kOutput) held[c.a] = value;
    }
  }

  // An earlier load or constant of the same value.
  int Same(const Instruction& c) {
    if (!shares_) return kNobody;
    if (!IsConst(c.op) && !(IsLoad(c.op) && !OverAny(c.b))) return kNobody;
    for (int i = 0; i < size(); ++i) {
      const Instruction& other = At(i).instruction;
      if (other.op == c.op && (IsConst(c.op) ? other.value == c.value : other.b == c.b)) return i;
    }
    return kNobody;
  }

  // What other instructions than add to min read, or two such operands of one, must be many numbers.
  void ChooseNumbers() {
    for (const Node& node : nodes_) {
      const auto is_number = [&](int j) {
        const int operand = node.operands[static_cast<size_t>(j)];
        return operand != kNobody && IsNumber(At(operand).access);
      };
      if (TakesNumber(node.instruction.op) && !(is_number(0) && is_number(1))) continue;
      for (int operand : node.operands) {
        if (operand != kNobody && IsNumber(At(operand).access)) At(operand).access = Access::kCopied;
      }
    }
  }

  // Values are read where they lie unless something is stored over them before they are read for the last time.
  void ChoosePointers() {
    for (Node& node : nodes_) {
      if (!IsLoad(node.instruction.op) || node.access != Access::kPointer) continue;
      for (int i = 0; i < node.last_use; ++i) {
        const Instruction& other = At(i).instruction;
        if (IsStore(other.op) && Over(node.instruction.b, other.a)) node.access = Access::kCopied;
      }
    }
  }

  // Results are written where they belong at once, unless what lies there is still read.
  void ChooseDirect() {
    for (int store = 0; store < size(); ++store) {
      const Instruction& c = At(store).instruction;
      if (!IsStore(c.op) || c.op == kEncode || outputs_[static_cast<size_t>(c.a)].access != Access::kPointer) continue;
      const int value = At(store).operands[0];
      Node& node = At(value);
      const Op op = node.instruction.op;
      if (node.direct != kNobody || node.once || IsConst(op) || (IsLoad(op) && node.access != Access::kCopied)) continue;
      if (ReadLater(value, c.a) || StoredTwice(store, c.a)) continue;
      node.direct = c.a;
      At(store).direct = value;  // and is not stored again
    }
  }

  bool ReadLater(int value, int output) {
    for (int i = 0; i < size(); ++i) {
      const Node& node = At(i);
      if (IsLoad(node.instruction.op) && Over(node.instruction.b, output) && (i > value || node.last_use > value)) return true;
    }
    return false;
  }

  bool StoredTwice(int store, int output) {
    for (int i = 0; i < size(); ++i) {
      if (i != store && IsStore(At(i).instruction.op) && At(i).instruction.a == output) return true;
    }
    return false;
  }

  Code Emit() {
    Code code;
    std::vector<int> slots(nodes_.size(), kNobody);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      Node& node = nodes_[i];
      if (!node.once || node.last_use == kNobody) continue;
      if (code.slots == kMostOnce) {
        node.once = false;
        continue;
      }
      slots[i] = code.slots++;
      code.once.push_back(OperationOf(node, slots[i], slots));
    }
    std::vector<int> free;
    for (int i = 0; i < size(); ++i) {
      const Node& node = At(i);
      const bool stores = IsStore(node.instruction.op);
      if (node.once || (stores && node.direct != kNobody) || (!stores && node.last_use == kNobody)) continue;
      Operation operation = OperationOf(node, kNobody, slots);
      // An operand's slot may be the result's, too, unless its numbers are still read when some of the result is written.
      std::vector<int> later;
      for (int operand : node.operands) {
        if (operand == kNobody || At(operand).once || At(operand).last_use != i) continue;
        std::vector<int>& list = At(operand).access == Access::kNumbers ? later : free;
        const int slot = slots[static_cast<size_t>(operand)];
        if (std::find(list.begin(), list.end(), slot) == list.end()) list.push_back(slot);
      }
      if (!stores) {
        if (free.empty()) free.push_back(code.slots++);
        operation.slot = slots[static_cast<size_t>(i)] = free.back();
        free.pop_back();
      }
      free.insert(free.end(), later.begin(), later.end());
      code.each.push_back(operation);
    }
    return code;
  }

  Operation OperationOf(const Node& node, int slot, const std::vector<int>& slots) {
    const Instruction& c = node.instruction;
    Operation out{c.op, node.access, slot, {0, 0, 0}, {false, false, false}, false, 0, node.direct, FloatOf(c.value)};
    out.port = IsLoad(c.op) ? c.b : IsStore(c.op) ? c.a : 0;
    for (size_t j = 0; j < 3; ++j) {
      const int operand = node.operands[j];
      out.from[j] = out.from[0];  // where there is none: any that there is
      if (operand == kNobody) continue;
      out.from[j] = slots[static_cast<size_t>(operand)];
      out.number[j] = IsNumber(At(operand).access);
      if (At(operand).access == Access::kNumbers) out.by_rows = true;
    }
    return out;
  }

  const std::vector<Port>&inputs_, &outputs_;
  bool shares_;
  std::vector<Node> nodes_;
};

}  // namespace

Code Compile(const std::vector<Instruction>& instructions, const std::vector<Port>& inputs, const std::vector<Port>& outputs) {
  // A value that several loads share lives longer than a register's: with very many, each has its own.
  Code code = Compiler(inputs, outputs, true).Run(instructions);
  return code.slots <= kMostSlots ? code : Compiler(inputs, outputs, false).Run(instructions);
}

}  // namespace jaxq8
