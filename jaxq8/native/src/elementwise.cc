#include "elementwise.h"

#include <algorithm>

#include "load_store.h"
#include "parallel.h"

namespace jaxq8 {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kLongRow = 384;           // rows from here on have blocks of their own
constexpr int64_t kLeastRow = 32;             // from here on, each may have a number of its own
constexpr int64_t kSlotStride = kBlock + 16;  // so that slots do not begin at the same place of each page

// In bytes that move in the same time.
int64_t CostOf(Op op) {
  if (op == kPow) return 128;
  return (op >= kExp && op <= kErf) || (op >= kLog && op <= kExpm1) ? 32 : 2;
}

}  // namespace

// What belongs to one run: where the values of each slot are, and the memory of those that are nowhere else.
struct ElementwiseKernel::State {
  const Call& call;
  const float* at[kMostSlots];
  alignas(64) float own[kMostSlots * kSlotStride];

  explicit State(const Call& c) : call(c) {}  // and nothing is set to 0
};

ElementwiseKernel::ElementwiseKernel(const std::vector<Tensor>& tensors, const Elementwise& step, int64_t rows) {
  const auto tensor = [&](int id) -> const Tensor& { return tensors[static_cast<size_t>(id)]; };
  count_ = tensor(step.outputs[0]).count();
  for (int id : step.inputs) inputs_.emplace_back(tensor(id), step.dims);
  for (int id : step.outputs) outputs_.emplace_back(tensor(id), step.dims);
  rows_ = rows;
  row_length_ = count_ / rows;
  JoinAxes(step, rows);
  within_ = row_ >= kLongRow;
  const int64_t pieces = (row_ + kBlock - 1) / kBlock;
  block_ = within_ ? ((row_ + pieces - 1) / pieces + 15) / 16 * 16 : std::max<int64_t>(1, kBlock / row_) * row_;
  if (row_ == count_) block_ = kBlock;
  units_ = within_ ? count_ / row_ * ((row_ + block_ - 1) / block_) : (count_ + block_ - 1) / block_;

  std::vector<Port> inputs, outputs;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    bool converts = SizeOf(inputs_[i].tensor.dtype) < 4;
    for (const Instruction& c : step.code) {
      if (c.op == kLoad && static_cast<size_t>(c.b) == i && inputs_[i].tensor.dtype == Dtype::kS32) converts = true;
    }
    inputs.push_back(InputPort(inputs_[i], converts));
    numbers_.push_back(inputs.back().access == Access::kNumbers ? inputs_[i].Numbers(row_) : inputs_[i]);
  }
  for (const Walk& walk : outputs_) {
    const bool whole = walk.last_stride() == 1 && (walk.flat() || within_) && SizeOf(walk.tensor.dtype) == 4;
    const auto overlaps = [&](const Walk& other) { return walk.tensor.overlaps(other.tensor); };
    const bool alone = std::count_if(outputs_.begin(), outputs_.end(), overlaps) <= 1;
    Port port{whole && alone ? Access::kPointer : Access::kCopied, false, {}};
    for (const Walk& input : inputs_) port.over.push_back(overlaps(input));
    outputs.push_back(std::move(port));
  }
  code_ = Compile(step.code, inputs, outputs);
  scaled_ = TakeScaled(code_, inputs_, outputs_, within_, row_);

  // What a block costs beside its loads and stores.
  for (const Instruction& c : step.code) bytes_each_ += CostOf(c.op);
  for (const auto* walks : {&inputs_, &outputs_}) {
    for (const Walk& walk : *walks) bytes_each_ += SizeOf(walk.tensor.dtype);
  }
  bytes_each_ = std::min<int64_t>(bytes_each_, 4096);
}

// The row: the last axes as long as they are one in all tensors, and within one of `rows` rows.
void ElementwiseKernel::JoinAxes(const Elementwise& step, int64_t rows) {
  row_ = 1;
  int64_t before = count_;
  const auto stride_of = [&](const Walk& walk, int axis) {
    return walk.tensor.dims[axis] == 1 ? 0 : walk.tensor.strides[axis];
  };
  std::vector<const Walk*> walks;
  for (const Walk& walk : inputs_) walks.push_back(&walk);
  for (const Walk& walk : outputs_) walks.push_back(&walk);
  std::vector<int64_t> strides(walks.size());
  for (int axis = step.rank - 1; axis >= 0 && count_; --axis) {
    const int64_t dim = step.dims[axis];
    if (dim == 1) continue;
    bool joins = before > rows;
    for (size_t i = 0; i < walks.size() && joins; ++i) joins = row_ == 1 || stride_of(*walks[i], axis) == row_ * strides[i];
    if (!joins) return;
    if (row_ == 1) {
      for (size_t i = 0; i < walks.size(); ++i) strides[i] = stride_of(*walks[i], axis);
    }
    row_ *= dim;
    before /= dim;
  }
}

Port ElementwiseKernel::InputPort(const Walk& walk, bool converts) const {
  const bool numbers = walk.last_stride() == 0;
  if (walk.flat() && numbers) return {Access::kNumber, true, {}};
  if (numbers && within_) return {Access::kNumber, false, {}};
  const bool whole = walk.last_stride() == 1 && !converts;
  // Whether all blocks see the same, wherever a run begins.
  const bool same = walk.periodic() && (rows_ == 1 || row_length_ % walk.last_dim() == 0);
  if (walk.flat()) return {whole ? Access::kPointer : Access::kCopied, false, {}};
  if (within_) {
    // Where a row is one block, all blocks see the same row of a vector.
    return {whole ? Access::kPointer : Access::kCopied, same && walk.last_dim() == row_ && row_ <= block_, {}};
  }
  if (numbers && row_ >= kLeastRow) return {Access::kNumbers, false, {}};
  return {Access::kCopied, same && block_ % walk.last_dim() == 0, {}};
}

int64_t ElementwiseKernel::Begin(int64_t unit) const {
  if (!within_) return std::min(count_, unit * block_);
  const int64_t pieces = (row_ + block_ - 1) / block_;
  return unit / pieces * row_ + unit % pieces * block_;
}

void ElementwiseKernel::Run(const Call& call, int64_t begin, int64_t end) const {
  State state(call);
  for (const Operation& o : code_.once) Execute(o, state, begin, std::min(block_, end - begin));
  if (!within_) {
    for (int64_t first = begin; first < end; first += block_) Block(state, first, std::min(block_, end - first));
    return;
  }
  int64_t position = begin % row_;
  for (int64_t first = begin; first < end;) {
    const int64_t n = std::min({block_, row_ - position, end - first});
    Block(state, first, n);
    first += n;
    position = position + n == row_ ? 0 : position + n;
  }
}

void ElementwiseKernel::Block(State& state, int64_t first, int64_t n) const {
  for (const Operation& o : code_.each) Execute(o, state, first, n);
  if (!scaled_) return;
  const Walk &in = inputs_[static_cast<size_t>(scaled_->input)], &out = outputs_[static_cast<size_t>(scaled_->output)];
  const int64_t piece = scaled_->by_rows ? row_ : n;
  for (int64_t position = 0; position < n; position += piece) {
    const auto at = [&](const Walk& walk) {
      return state.call.At(walk.tensor) + walk.Offset(first + position) * SizeOf(walk.tensor.dtype);
    };
    RunScaled(*scaled_, in.tensor.dtype, at(in), out.tensor.dtype, at(out), position, std::min(piece, n - position), state.at);
  }
}

void ElementwiseKernel::Execute(const Operation& o, State& state, int64_t first, int64_t n) const {
  if (IsStore(o.op)) {
    const Walk& walk = outputs_[static_cast<size_t>(o.port)];
    return Store(walk, state.call.At(walk.tensor), first, n, state.at[o.from[0]]);
  }
  float* to = state.own + o.slot * kSlotStride;
  if (o.direct >= 0) {
    const Walk& walk = outputs_[static_cast<size_t>(o.direct)];
    to = reinterpret_cast<float*>(state.call.At(walk.tensor)) + walk.Offset(first);
  }
  if (IsLoad(o.op)) {
    const Walk& walk = inputs_[static_cast<size_t>(o.port)];
    const uint8_t* base = state.call.At(walk.tensor);
    if (o.access == Access::kPointer) {
      state.at[o.slot] = reinterpret_cast<const float*>(base) + walk.Offset(first);
      return;
    }
    if (o.access == Access::kNumbers) {
      Load(o.op == kLoad, numbers_[static_cast<size_t>(o.port)], base, first / row_, n / row_, to);
    } else {
      Load(o.op == kLoad, walk, base, first, o.access == Access::kNumber ? 1 : n, to);
    }
  } else if (IsConst(o.op)) {
    std::fill(to, to + (o.access == Access::kNumber ? 1 : n), o.value);
  } else if (o.by_rows) {
    const float *b = state.at[o.from[0]], *c = state.at[o.from[1]];
    for (int64_t row = 0, i = 0; i < n; ++row, i += row_) {
      Compute(o, to + i, b + (o.number[0] ? row : i), c + (o.number[1] ? row : i), c, row_);
    }
  } else {
    Compute(o, to, state.at[o.from[0]], state.at[o.from[1]], state.at[o.from[2]], n);
  }
  state.at[o.slot] = to;
}

namespace {

class ElementwiseAction final : public Action {
 public:
  ElementwiseAction(const Program& program, const Elementwise& step)
      : kernel_(program.tensors, step), size_(step.code.size()) {}

  void Run(const Call& call) const override {
    Parallel(kernel_.units(), kernel_.bytes(), [&](int64_t begin, int64_t end) {
      kernel_.Run(call, kernel_.Begin(begin), kernel_.Begin(end));
    });
  }

  std::string Describe() const override { return "elementwise of " + std::to_string(size_) + " instructions"; }

 private:
  ElementwiseKernel kernel_;
  size_t size_;
};

}  // namespace

std::unique_ptr<Action> MakeElementwise(const Program& program, const Elementwise& step) {
  return std::make_unique<ElementwiseAction>(program, step);
}

}  // namespace jaxq8
