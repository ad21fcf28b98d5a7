// That the tensors of a step fit together. After this, kernels read and write within the views without looking again.
#include <algorithm>
#include <string>

#include "program.h"

namespace jaxq8 {
namespace {

constexpr int64_t kMost = int64_t{1} << 31;  // elements of what a contraction or a pool reads and writes

void Require(bool holds, const char* text) {
  if (!holds) throw ProgramError(text);
}

bool Eight(const Tensor& t) { return t.dtype == Dtype::kU8 || t.dtype == Dtype::kS8; }

class Checker {
 public:
  explicit Checker(const Program& program) : program_(program) {}

  void operator()(const Contract& s) const {
    const Tensor &src = At(s.src), &weights = At(s.weights), &dst = Written(s.dst);
    const int rank = s.ns == 0 ? 2 : s.ns + 2;
    Require(src.rank == rank && dst.rank == rank, "src or dst has not the rank of the contraction");
    Require(Eight(src), "src is neither uint8 nor int8");
    Require(weights.dtype == Dtype::kS8, "the weights are not int8");
    Require(s.kind != 1 || s.ns == 0, "weights of kind 1 belong to matrix products");
    Require(s.ns != 0 || s.groups == 1, "a matrix product has no groups");
    Require(dst.count() > 0 && src.count() > 0 && weights.count() > 0, "a tensor of the contraction is empty");
    for (const Tensor* t : {&src, &weights, &dst}) {
      Require(t->count() < kMost, "a tensor of the contraction has 2**31 elements or more");
    }
    const int64_t c_in = src.dims[rank - 1], c_out = dst.dims[rank - 1];
    Require(src.dims[0] == dst.dims[0], "src and dst differ in the first dimension");
    Require(c_in % s.groups == 0 && c_out % s.groups == 0, "groups do not divide the channels");
    for (int i = 0; i < s.ns; ++i) {
      Require(Places(src.dims[i + 1], s.low[i], s.high[i], s.kernel[i], s.dilation[i], s.strides[i]) == dst.dims[i + 1],
              "dst has not the spatial dimensions of the convolution");
    }
    if (s.kind == 2) {
      Require(weights.rank == 1 && weights.dense(), "packed weights are not a vector of bytes");
      CheckProblem(s, c_in, c_out);
    } else {
      Require(weights.rank == rank, "the weights have not the rank of the contraction");
      const int in_axis = s.kind == 1 ? 1 : s.ns, out_axis = s.kind == 1 ? 0 : s.ns + 1;
      Require(std::equal(s.kernel, s.kernel + s.ns, weights.dims) && weights.dims[in_axis] == c_in / s.groups &&
                  weights.dims[out_axis] == c_out,
              "the weights' dimensions do not fit src, dst and kernel");
    }
    if (dst.dtype == Dtype::kS32) {
      Require(s.mult < 0 && s.offset < 0 && s.residual < 0 && s.rescale < 0 && s.shift < 0 &&
                  s.function == Function::kNone,
              "an int32 dst has no epilogue");
      return;
    }
    Require(s.mult >= 0 && s.offset >= 0, "mult or offset is absent");
    for (int id : {s.mult, s.offset}) {
      const Tensor& t = At(id);
      Require(t.dtype == Dtype::kF32 && t.rank == 1 && t.dims[0] == c_out && t.dense(),
              "mult or offset is not a float32 vector with a number for each channel");
    }
    if (s.residual >= 0) {
      const Tensor& t = At(s.residual);
      Require(t.same_dims(dst) && t.dtype != Dtype::kS32, "the residual has not dst's dimensions, or is int32");
    }
    Require(s.shift < 0 || s.function != Function::kNone, "there is a shift without a function");
    for (int id : {s.rescale, s.shift}) {
      if (id >= 0) Require(At(id).dtype == Dtype::kF32 && At(id).count() == 1, "rescale or shift is not one float32");
    }
  }

  void operator()(const Elementwise& s) const {
    Require(!s.outputs.empty(), "there is no output");
    for (int id : s.inputs) {
      const Tensor& t = At(id);
      Require(t.rank == s.rank, "an input has another rank");
      for (int i = 0; i < s.rank; ++i) {
        Require(t.dims[i] == s.dims[i] || t.dims[i] == 1, "an input's dimensions do not broadcast");
      }
    }
    for (int id : s.outputs) {
      const Tensor& t = Written(id);
      Require(t.rank == s.rank && std::equal(s.dims, s.dims + s.rank, t.dims), "an output has other dimensions");
    }
    CheckCode(s.code);
    for (const Instruction& c : s.code) {
      if (c.op == kLoadInt) {
        Require(At(s.inputs[static_cast<size_t>(c.b)]).dtype != Dtype::kF32, "LOAD_INT of an input that is float32");
      }
      if (InfoOf(c.op).result != OpInfo::kOutput) continue;
      const Tensor& output = At(s.outputs[static_cast<size_t>(c.a)]);
      Require(c.op != kStore || output.dtype == Dtype::kF32, "STORE to an output that is not float32");
      Require(c.op != kEncode || Eight(output), "ENCODE to an output that is not eight-bit");
      Require(c.op != kStoreInt || output.dtype == Dtype::kS32, "STORE_INT to an output that is not int32");
    }
  }

  void operator()(const Copy& s) const {
    const Tensor &src = At(s.src), &dst = Written(s.dst);
    Require(src.dtype == dst.dtype && src.same_dims(dst), "src and dst differ in dtype or dimensions");
  }

  void operator()(const Fill& s) const {
    const Tensor& dst = Written(s.dst);
    if (s.value < 0) {
      const bool fits = dst.dtype == Dtype::kU8   ? s.number >= 0 && s.number <= 255
                        : dst.dtype == Dtype::kS8 ? s.number >= -128 && s.number <= 127
                                                  : s.number >= INT32_MIN && s.number <= INT32_MAX;
      Require(fits, "the number does not fit dst");
    } else {
      const Tensor& value = At(s.value);
      Require(value.count() == 1 && value.dtype != Dtype::kF32, "value is not one integer");
    }
  }

  void operator()(const Pool& s) const {
    const Tensor &src = At(s.src), &dst = Written(s.dst);
    Require(src.rank == s.ns + 2 && dst.rank == s.ns + 2, "src or dst has not the rank of the pool");
    Require(Eight(src), "src is neither uint8 nor int8");
    Require(src.count() < kMost && dst.count() < kMost, "src or dst is too large");
    int64_t window = 1;
    for (int i = 0; i < s.ns; ++i) Require((window *= s.window[i]) < kMost, "the window is too large");
    Require(src.dims[0] == dst.dims[0] && src.dims[s.ns + 1] == dst.dims[s.ns + 1], "src and dst differ in batch or channels");
    for (int i = 0; i < s.ns; ++i) {
      Require(Places(src.dims[i + 1], s.low[i], s.high[i], s.window[i], s.dilation[i], s.strides[i]) == dst.dims[i + 1],
              "dst has not the spatial dimensions of the pool");
    }
    if (s.largest) {
      Require(dst.dtype == src.dtype, "src and dst differ in dtype");
      Require(src.dtype == Dtype::kU8 ? s.lowest >= 0 : s.lowest <= 127, "lowest is no code of src");
    } else {
      Require(dst.dtype == Dtype::kS32, "sums are not int32");
      if (s.border >= 0) {
        const Tensor& border = At(s.border);
        Require(border.count() == 1 && border.dtype == Dtype::kS32, "border is not one int32");
      }
    }
  }

  void operator()(const Reduce& s) const {
    const Tensor &src = At(s.src), &dst = Written(s.dst);
    Require(src.rank == dst.rank, "src and dst differ in rank");
    for (int i = 0; i < src.rank; ++i) {
      Require(dst.dims[i] == src.dims[i] || dst.dims[i] == 1, "dst has neither size 1 nor src's size along an axis");
    }
    const bool sums_integers = s.kind == ReduceKind::kSum && src.dtype != Dtype::kF32;
    Require(dst.dtype == (sums_integers ? Dtype::kS32 : src.dtype),
            sums_integers ? "sums of integers are not int32" : "src and dst differ in dtype");
    Require(s.kind != ReduceKind::kNan || src.dtype == Dtype::kF32, "only float32 numbers can be NaN");
    Require(s.kind == ReduceKind::kSum || s.kind == ReduceKind::kNan || src.count() > 0 || dst.count() == 0, "nothing has no extreme");
    Require(!dst.overlaps(src), "dst lies over src");
  }

  void operator()(const Product& s) const {
    const Tensor &a = At(s.a), &b = At(s.b), &dst = Written(s.dst);
    const int rank = dst.rank;
    Require(rank >= 2 && a.rank == rank && b.rank == rank, "a, b and dst have not the same rank of 2 or more");
    for (int i = 0; i < rank - 2; ++i) {
      const int64_t x = a.dims[i], y = b.dims[i];
      Require((x == y || x == 1 || y == 1) && dst.dims[i] == (x == 1 ? y : x), "the first axes of a, b and dst do not fit");
    }
    Require(a.dims[rank - 2] == dst.dims[rank - 2] && b.dims[rank - 1] == dst.dims[rank - 1] &&
                a.dims[rank - 1] == b.dims[rank - 2],
            "the matrices of a, b and dst do not fit");
    if (a.dtype == Dtype::kF32) {
      Require(b.dtype == Dtype::kF32 && dst.dtype == Dtype::kF32, "b or dst is not float32 as a is");
    } else {
      Require(Eight(a) && b.dtype == Dtype::kS8 && dst.dtype == Dtype::kS32, "a, b and dst are not codes, signed codes and int32");
    }
    for (const Tensor* t : {&a, &b, &dst}) {
      Require(t->count() > 0 && t->count() < kMost, "a tensor of the product is empty or has 2**31 elements or more");
      Require(t == &dst || !dst.overlaps(*t), "dst lies over a or b");
    }
  }

  void operator()(const Loop& s) const {
    const Program& body = *s.body;
    Require(static_cast<int>(s.inputs.size()) == body.n_args && static_cast<int>(s.outputs.size()) == body.n_results,
            "the loop has other tensors than its program");
    for (size_t i = 0; i < s.inputs.size(); ++i) {
      const Tensor& t = At(s.inputs[i]);
      CheckEntries(t, body.needs[i], s.sliced[i] ? s.length : 1);
      if (s.handed[i] < 0) continue;
      const size_t from = static_cast<size_t>(s.handed[i]);
      Require(from < s.outputs.size() && s.spares[from] >= 0 && !s.sliced[i], "what is handed on is no result of that kind");
      const Tensor& handed = At(s.outputs[from]);
      Require(handed.dtype == t.dtype && handed.count() == t.count(), "what is handed on differs from the argument it goes to");
      for (size_t j = 0; j < i; ++j) Require(s.handed[j] != s.handed[i], "a result is handed on twice");
    }
    std::vector<const Tensor*> written;
    for (size_t i = 0; i < s.outputs.size(); ++i) {
      const bool handed = s.spares[i] >= 0;
      const Tensor& t = Written(s.outputs[i]);
      CheckEntries(t, body.needs[s.inputs.size() + i], handed ? 1 : s.length);
      written.push_back(&t);
      if (!handed) continue;
      const Tensor& spare = Written(s.spares[i]);
      Require(spare.dtype == t.dtype && spare.count() == t.count() && spare.dense(), "a spare differs from its result");
      written.push_back(&spare);
    }
    for (const Alias& alias : body.aliases) {
      const size_t argument = static_cast<size_t>(alias.argument), result = static_cast<size_t>(alias.result);
      const Tensor &from = At(s.inputs[argument]), &to = At(s.outputs[result]);
      const int64_t entries = s.sliced[argument] ? s.length : 1, made = s.spares[result] < 0 ? s.length : 1;
      const Need& need = body.needs[s.inputs.size() + result];
      Require(from.dtype == to.dtype && from.count() / entries == to.count() / made &&
                  from.count() / entries * SizeOf(from.dtype) >= need.bytes,
              "a result of the loop's program begins with an argument that is unlike it");
    }
    for (size_t i = 0; i < written.size(); ++i) {
      for (size_t j = 0; j < i; ++j) Require(!written[i]->overlaps(*written[j]), "two results of the loop overlap");
      for (int id : s.inputs) Require(!written[i]->overlaps(At(id)), "the loop writes over what it reads");
    }
  }

  void operator()(const Placed& s) const {
    const Tensor &src = At(s.src), &dst = Written(s.dst);
    const Tensor &part = s.into ? src : dst, &whole = s.into ? dst : src;
    Require(src.dtype == dst.dtype && src.rank == dst.rank, "src and dst differ in dtype or rank");
    Require(static_cast<int>(s.starts.size()) == whole.rank, "there is not a start for each axis");
    for (int i = 0; i < whole.rank; ++i) Require(part.dims[i] <= whole.dims[i], "the part is longer than the whole along an axis");
    for (int id : s.starts) {
      if (id >= 0) Require(At(id).dtype == Dtype::kS32 && At(id).count() == 1, "a start is not one int32");
    }
    Require(!dst.overlaps(src), "dst lies over src");
  }

 private:
  // That a tensor has so many entries, each of which is what a program needs.
  void CheckEntries(const Tensor& t, const Need& need, int64_t entries) const {
    Require(t.dense(), "a tensor of the loop has gaps");
    Require(t.count() % entries == 0, "a tensor of the loop has not an entry for each time");
    Require(!need.used || (t.dtype == need.dtype && t.count() / entries * SizeOf(t.dtype) >= need.bytes),
            "a tensor of the loop is not what its program needs");
  }

  const Tensor& At(int id) const { return program_.tensors[static_cast<size_t>(id)]; }

  const Tensor& Written(int id) const {
    const Tensor& t = At(id);
    Require(t.place == kArena || t.place >= program_.n_args, "it writes to an argument");
    for (int i = 0; i < t.rank; ++i) Require(t.dims[i] <= 1 || t.strides[i] > 0, "it writes several times to one element");
    return t;
  }

  void CheckProblem(const Contract& s, int64_t c_in, int64_t c_out) const {
    const Problem p = ParseProblem(s.problem.data(), s.problem.size());
    Require(p.ns == s.ns && p.c_in == c_in && p.c_out == c_out && p.groups == s.groups &&
                std::equal(p.kernel, p.kernel + p.ns, s.kernel),
            "the problem of the packed weights is another contraction");
  }

  const Program& program_;
};

}  // namespace

void CheckStep(const Program& program, const Step& step) { std::visit(Checker(program), step); }

const char* NameOf(const Step& step) {
  if (const Pool* pool = std::get_if<Pool>(&step)) return pool->largest ? "MAXPOOL" : "SUMPOOL";
  if (const Placed* placed = std::get_if<Placed>(&step)) return placed->into ? "UPDATE" : "TAKE";
  constexpr const char* names[] = {"CONTRACT", "ELEMENTWISE", "COPY", "FILL", "POOL", "REDUCE", "PRODUCT", "PLACED", "LOOP"};
  return names[step.index()];
}

}  // namespace jaxq8
