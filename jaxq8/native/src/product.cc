// PRODUCT: single rows in loops of our own, and oneDNN's products of matrices, both of which are data. They are read where they
// lie if a good implementation does that, and are copied otherwise.
#include <algorithm>
#include <optional>

#include "descs.h"

namespace jaxq8 {
namespace {

// The three tensors with the first axes merged that allow it; an axis that a or b is broadcast along has size 1 there.
struct Operands {
  Tensor tensors[3];  // a, b, dst

  Operands(const Tensor& a, const Tensor& b, const Tensor& dst, bool led) : tensors{a, b, dst} {
    const int batch = dst.rank - 2;
    int to = 0;
    for (int i = 0; i < batch; ++i) {
      if (dst.dims[i] == 1) continue;
      if (to && Merges(to - 1, i)) {
        for (Tensor& t : tensors) {
          t.dims[to - 1] *= t.dims[i];
          t.strides[to - 1] = t.strides[i];
        }
      } else {
        Move(i, to++);
      }
    }
    Move(batch, to);
    Move(batch + 1, to + 1);
    for (Tensor& t : tensors) {
      t.rank = to + 2;
      Straighten(t);
      if (led && t.rank == 3) Lead(t);
    }
  }

 private:
  // A broadcast axis, of size 1 or of stride 0, merges with another one only.
  bool Merges(int before, int next) const {
    for (const Tensor& t : tensors) {
      const bool fixed = t.dims[before] == 1, next_fixed = t.dims[next] == 1 || t.strides[next] == 0;
      if (fixed != next_fixed) return false;
      if (!fixed && t.strides[before] != t.dims[next] * t.strides[next]) return false;
    }
    return true;
  }

  void Move(int from, int to) {
    for (Tensor& t : tensors) {
      t.dims[to] = t.dims[from];
      t.strides[to] = t.strides[from];
      if (from < t.rank - 2 && t.strides[to] == 0) t.dims[to] = 1;
    }
  }

  // Another first axis, of size 1. oneDNN's best kernel reads the heads of an array (batch, place, head, channel) where they lie if
  // the batch is an axis of its own, and has no such form for three axes.
  static void Lead(Tensor& t) {
    int64_t extent = 1;
    for (int i = 0; i < t.rank; ++i) extent = std::max(extent, t.dims[i] * t.strides[i]);
    for (int i = t.rank; i > 0; --i) {
      t.dims[i] = t.dims[i - 1];
      t.strides[i] = t.strides[i - 1];
    }
    t.dims[0] = 1;
    t.strides[0] = extent;
    ++t.rank;
  }

  // Strides of axes of size 1 mean nothing, and oneDNN compares them: they become those of a dense tensor.
  static void Straighten(Tensor& t) {
    const int m = t.rank - 2, n = t.rank - 1;
    if (t.dims[n] == 1) t.strides[n] = 1;
    if (t.dims[m] == 1) t.strides[m] = t.strides[n] == 1 ? t.dims[n] : 1;
    int64_t next = std::max(t.dims[m] * t.strides[m], t.dims[n] * t.strides[n]);
    for (int i = m - 1; i >= 0; --i) {
      if (t.dims[i] == 1) t.strides[i] = next;
      next = t.dims[i] * t.strides[i];
    }
  }
};

Desc MatrixDesc(const Tensor& t) {
  return Desc(Dims(t.dims, t.dims + t.rank), TypeOf(t.dtype), Dims(t.strides, t.strides + t.rank));
}

struct Made {
  bool led;
  int copied;  // a bit for each of the three tensors
  int64_t cost;
  dnnl::primitive_desc description;
  dnnl::primitive primitive;
  std::string name;
};

// The product with some of the tensors in dense memory; nothing if oneDNN has none.
std::optional<Made> Make(const Operands& operands, bool led, int copied) {
  Desc descs[3];
  int64_t bytes = 0;
  for (int i = 0; i < 3; ++i) {
    const Tensor& t = operands.tensors[i];
    if (copied >> i & 1) {
      if (t.dense()) return std::nullopt;
      bytes += t.count() * SizeOf(t.dtype);
    }
    descs[i] = MatrixDesc(copied >> i & 1 ? t.densely(kScratch, 0) : t);
  }
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::primitive_desc pd = Geometry::Matmul(descs[0], descs[1], Desc(), descs[2], attr);
  if (!pd) return std::nullopt;
  const std::string name = pd.impl_info_str();
  return Made{led, copied, BadnessOf(name) * (int64_t{1} << 40) + bytes, pd, dnnl::matmul(pd), name};
}

}  // namespace

void CollectProduct(Collector& collector, const Product& step) {
  const auto at = [&](int id) -> const Tensor& { return collector.program.tensors[static_cast<size_t>(id)]; };
  if (std::unique_ptr<Action> row = MakeVectorProduct(at(step.a), at(step.b), at(step.dst))) {
    collector.actions.push_back(std::move(row));
    return;
  }
  std::optional<Made> best;
  std::string refused;
  for (int form = 0; form < 16; ++form) {
    const bool led = form & 1;
    try {
      std::optional<Made> made = Make(Operands(at(step.a), at(step.b), at(step.dst), led), led, form >> 1);
      if (made && (!best || made->cost < best->cost)) best = std::move(made);
    } catch (const dnnl::error& error) {  // views that overlap themselves, for instance; copies of them do not
      refused = std::string(": ") + error.what();
    }
  }
  if (!best) throw ProgramError("oneDNN has no implementation of it" + refused);
  const Operands operands(at(step.a), at(step.b), at(step.dst), best->led);
  constexpr int names[] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
  std::vector<Argument> arguments;
  Tensor dst = operands.tensors[2];
  for (int i = 0; i < 3; ++i) {
    Tensor t = operands.tensors[i];
    if (best->copied >> i & 1) {
      t = t.densely(kScratch, collector.Scratch(static_cast<size_t>(t.count() * SizeOf(t.dtype))));
      if (i < 2) collector.actions.push_back(MakeCopy(operands.tensors[i], t));
    }
    arguments.push_back({names[i], MatrixDesc(t), t.place, t.offset});
    if (i == 2) dst = t;
  }
  collector.Add(best->primitive, best->description, std::move(arguments), best->name);
  if (best->copied & 4) collector.actions.push_back(MakeCopy(dst, operands.tensors[2]));
}

}  // namespace jaxq8
