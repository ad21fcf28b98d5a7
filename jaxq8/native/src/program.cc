#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace jaxq8 {
namespace {

constexpr int64_t kMagic = 0x6a61787138;
constexpr int64_t kVersion = 3;
constexpr int64_t kLargest = int64_t{1} << 31;      // of a dimension, a window, a number of words
constexpr int64_t kMostBytes = int64_t{1} << 46;    // of offsets and arenas: sums of a few never overflow
constexpr int64_t kMostBuffers = 1 << 16;
constexpr int64_t kLoopCode = 11;
constexpr int64_t kMostTimes = 1 << 20;             // of a loop: a damaged number shall not run for hours
constexpr int kMostLoops = 8;                       // one inside the other

[[noreturn]] void Fail(const std::string& text) { throw ProgramError(text); }

// Reads words one after another; what is read is named for the error.
class Reader {
 public:
  Reader(const int64_t* words, size_t n) : words_(words), n_(n) {}

  size_t left() const { return n_ - at_; }

  int64_t Any(const char* what) {
    if (at_ >= n_) Fail(std::string("the words end before ") + what);
    return words_[at_++];
  }

  int64_t In(const char* what, int64_t least, int64_t most) {
    const int64_t value = Any(what);
    if (value < least || value > most) {
      Fail(std::string(what) + " is " + std::to_string(value) + ", expected " + std::to_string(least) + " to " +
           std::to_string(most));
    }
    return value;
  }

  void Several(const char* what, int n, int64_t least, int64_t most, int64_t* out) {
    for (int i = 0; i < n; ++i) out[i] = In(what, least, most);
  }

  // The bits of a float32, which the words hold as a number without a sign.
  int32_t FloatBits(const char* what) { return static_cast<int32_t>(static_cast<uint32_t>(In(what, 0, 0xffffffff))); }

  float Float(const char* what) {
    const int32_t bits = FloatBits(what);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

  // A reader of the next n words.
  Reader Part(const char* what, int64_t n) {
    if (static_cast<uint64_t>(n) > left()) Fail(std::string("the words end within ") + what);
    Reader part(words_ + at_, static_cast<size_t>(n));
    at_ += static_cast<size_t>(n);
    return part;
  }

  void Done(const char* what) const {
    if (left()) Fail(std::to_string(left()) + " words too many after " + what);
  }

  const int64_t* at() const { return words_ + at_; }

 private:
  const int64_t* words_;
  size_t n_;
  size_t at_ = 0;
};

Tensor ReadTensor(Reader& in, const Program& program) {
  Tensor t;
  t.dtype = static_cast<Dtype>(in.In("dtype", 0, 3));
  t.place = static_cast<int>(in.In("place", -1, program.n_args + program.n_results - 1));
  t.offset = in.In("offset", 0, kMostBytes);
  t.rank = static_cast<int>(in.In("rank", 0, kMaxRank));
  in.Several("dimension", t.rank, 0, kLargest, t.dims);
  in.Several("stride", t.rank, 0, kMostBytes, t.strides);
  for (const Alias& alias : program.aliases) {
    if (t.place == alias.argument) Fail("it lies in an argument that a result begins with");
  }
  if (t.offset % SizeOf(t.dtype)) Fail("its offset is not a multiple of its item size");
  return t;
}

// The number of bytes from the beginning of its buffer that a view reaches.
int64_t Reach(const Tensor& t) {
  __int128 elements = 1, last = 0;
  if (std::find(t.dims, t.dims + t.rank, 0) != t.dims + t.rank) return 0;
  for (int i = 0; i < t.rank; ++i) {
    elements *= t.dims[i];
    if (elements > kMostBytes) Fail("it has too many elements");
    last += static_cast<__int128>(t.dims[i] - 1) * t.strides[i];
  }
  const __int128 bytes = t.offset + (last + 1) * SizeOf(t.dtype);
  if (bytes > 4 * kMostBytes) Fail("it reaches too far");
  return static_cast<int64_t>(bytes);
}

void Window(Reader& in, int ns, int64_t least_low, int64_t* window, int64_t* strides, int64_t* dilation, int64_t* low,
            int64_t* high) {
  in.Several("window", ns, 1, kLargest, window);
  in.Several("window stride", ns, 1, kLargest, strides);
  in.Several("dilation", ns, 1, kLargest, dilation);
  in.Several("low padding", ns, least_low, kLargest, low);
  in.Several("high padding", ns, least_low, kLargest, high);
}

Contract ReadContract(Reader& in, int64_t most) {
  Contract s{};
  s.src = static_cast<int>(in.In("src", 0, most));
  s.weights = static_cast<int>(in.In("weights", 0, most));
  s.dst = static_cast<int>(in.In("dst", 0, most));
  s.mult = static_cast<int>(in.In("mult", -1, most));
  s.offset = static_cast<int>(in.In("offset", -1, most));
  s.residual = static_cast<int>(in.In("residual", -1, most));
  s.rescale = static_cast<int>(in.In("rescale", -1, most));
  s.function = static_cast<Function>(in.In("function", 0, 6));
  s.shift = static_cast<int>(in.In("shift", -1, most));
  s.lo = in.Float("lo");
  s.hi = in.Float("hi");
  if (std::isnan(s.lo) || std::isnan(s.hi) || s.lo > s.hi) Fail("lo and hi are not an interval");
  s.kind = static_cast<int>(in.In("weights_kind", 0, 2));
  s.ns = static_cast<int>(in.In("n_spatial", 0, 3));
  Window(in, s.ns, 0, s.kernel, s.strides, s.dilation, s.low, s.high);
  s.groups = in.In("groups", 1, kLargest);
  if (s.kind == 2) {
    const int64_t n = in.In("n_problem", 0, 64);
    Reader part = in.Part("problem", n);
    s.problem.assign(part.at(), part.at() + n);
  }
  return s;
}

Elementwise ReadElementwise(Reader& in, int64_t most) {
  Elementwise s{};
  s.rank = static_cast<int>(in.In("rank", 0, kMaxRank));
  in.Several("dimension", s.rank, 0, kLargest, s.dims);
  for (int64_t i = in.In("n_inputs", 0, 4096); i > 0; --i) s.inputs.push_back(static_cast<int>(in.In("input", 0, most)));
  for (int64_t i = in.In("n_outputs", 0, 4096); i > 0; --i) s.outputs.push_back(static_cast<int>(in.In("output", 0, most)));
  const int64_t n_inputs = static_cast<int64_t>(s.inputs.size()), n_outputs = static_cast<int64_t>(s.outputs.size());
  for (int64_t i = in.In("n_instr", 0, 1 << 16); i > 0; --i) {
    Instruction c{};
    c.op = static_cast<Op>(in.In("operation", 0, kOps - 1));
    const OpInfo& info = InfoOf(c.op);
    c.a = static_cast<int>(in.In("first operand", 0, (info.result == OpInfo::kOutput ? n_outputs : kRegisters) - 1));
    int* const operands[] = {&c.b, &c.c, &c.d};
    constexpr const char* names[] = {"second operand", "third operand", "fourth operand"};
    for (int j = 0; j < 3; ++j) {
      switch (info.operands[j]) {
        case OpInfo::kNone: in.Any(names[j]); break;
        case OpInfo::kFloatBits: c.value = in.FloatBits("constant"); break;
        case OpInfo::kNumber: c.value = static_cast<int32_t>(in.In("constant", INT32_MIN, INT32_MAX)); break;
        case OpInfo::kInput: *operands[j] = static_cast<int>(in.In(names[j], 0, n_inputs - 1)); break;
        default: *operands[j] = static_cast<int>(in.In(names[j], 0, kRegisters - 1));
      }
    }
    s.code.push_back(c);
  }
  return s;
}

Pool ReadPool(Reader& in, int64_t most, bool largest) {
  Pool s{};
  s.largest = largest;
  s.src = static_cast<int>(in.In("src", 0, most));
  s.dst = static_cast<int>(in.In("dst", 0, most));
  s.ns = static_cast<int>(in.In("n_spatial", 1, 3));
  Window(in, s.ns, 0, s.window, s.strides, s.dilation, s.low, s.high);
  s.border = -1;
  if (largest) {
    s.lowest = in.In("lowest", -128, 255);
  } else {
    s.border = static_cast<int>(in.In("border", -1, most));
  }
  return s;
}

Placed ReadPlaced(Reader& in, int64_t most, bool into) {
  Placed s{};
  s.into = into;
  s.src = static_cast<int>(in.In("src", 0, most));
  s.dst = static_cast<int>(in.In("dst", 0, most));
  for (int64_t i = in.In("n_starts", 0, kMaxRank); i > 0; --i) s.starts.push_back(static_cast<int>(in.In("start", -1, most)));
  return s;
}

std::vector<Alias> ReadAliases(Reader& in, const Program& program) {
  std::vector<Alias> out;
  for (int64_t i = in.In("n_aliases", 0, std::min(program.n_args, program.n_results)); i > 0; --i) {
    const int argument = static_cast<int>(in.In("an alias's argument", 0, program.n_args - 1));
    const int result = static_cast<int>(in.In("an alias's result", 0, program.n_results - 1));
    for (const Alias& other : out) {
      if (other.argument == argument || other.result == result) Fail("two aliases have the same argument or result");
    }
    out.push_back({argument, result});
  }
  return out;
}

Program ParseAll(Reader& in, int loops);

Loop ReadLoop(Reader& in, int64_t most, int loops) {
  if (loops >= kMostLoops) Fail("too many loops lie one inside the other");
  Loop s{};
  s.length = in.In("length", 1, kMostTimes);
  s.reverse = in.In("reverse", 0, 1) == 1;
  for (int64_t i = in.In("n_inputs", 0, kMostBuffers); i > 0; --i) {
    s.inputs.push_back(static_cast<int>(in.In("input", 0, most)));
    s.sliced.push_back(static_cast<char>(in.In("sliced", 0, 1)));
    s.handed.push_back(static_cast<int>(in.In("handed", -1, kMostBuffers)));
  }
  for (int64_t i = in.In("n_outputs", 0, kMostBuffers); i > 0; --i) {
    s.outputs.push_back(static_cast<int>(in.In("output", 0, most)));
    s.spares.push_back(static_cast<int>(in.In("spare", -1, most)));
  }
  s.body = std::make_shared<const Program>(ParseAll(in, loops + 1));
  return s;
}

Step ReadStep(int64_t opcode, Reader& in, int64_t most, int loops) {
  switch (opcode) {
    case 1: return ReadContract(in, most);
    case 2: return ReadElementwise(in, most);
    case 3: {
      const int src = static_cast<int>(in.In("src", 0, most));
      return Copy{src, static_cast<int>(in.In("dst", 0, most))};
    }
    case 4: {
      const int dst = static_cast<int>(in.In("dst", 0, most));
      const int value = static_cast<int>(in.In("value", -1, most));
      return Fill{dst, value, in.Any("imm")};
    }
    case 7: {
      const int src = static_cast<int>(in.In("src", 0, most)), dst = static_cast<int>(in.In("dst", 0, most));
      return Reduce{src, dst, static_cast<ReduceKind>(in.In("kind", 0, 3))};
    }
    case 8: {
      const int a = static_cast<int>(in.In("a", 0, most)), b = static_cast<int>(in.In("b", 0, most));
      return Product{a, b, static_cast<int>(in.In("dst", 0, most))};
    }
    case 9:
    case 10: return ReadPlaced(in, most, opcode == 9);
    case kLoopCode: return ReadLoop(in, most, loops);
    default: return ReadPool(in, most, opcode == 5);
  }
}

Program ParseAll(Reader& in, int loops) {
  if (in.Any("the magic number") != kMagic) Fail("these are not the words of a region program");
  const int64_t version = in.Any("the version");
  if (version != kVersion) Fail("version " + std::to_string(version) + " of region programs is not known");
  Program program;
  program.n_args = static_cast<int>(in.In("n_args", 0, kMostBuffers));
  program.n_results = static_cast<int>(in.In("n_results", 0, kMostBuffers));
  program.arena_bytes = in.In("arena_bytes", 0, kMostBytes);
  program.aliases = ReadAliases(in, program);
  program.needs.resize(static_cast<size_t>(program.n_args + program.n_results));
  const int64_t n_tensors = in.In("n_tensors", 0, kLargest);
  for (int64_t i = 0; i < n_tensors; ++i) {
    try {
      Tensor t = ReadTensor(in, program);
      const int64_t reach = Reach(t);
      if (reach == 0) std::fill(t.strides, t.strides + t.rank, 0);
      if (t.place == kArena) {
        if (reach > program.arena_bytes) Fail("it reaches beyond the arena");
      } else {
        Need& need = program.needs[static_cast<size_t>(t.place)];
        if (need.used && need.dtype != t.dtype) Fail("its dtype differs from another view's of the same buffer");
        need.used = true;
        need.dtype = t.dtype;
        need.bytes = std::max(need.bytes, reach);
      }
      program.tensors.push_back(t);
    } catch (const ProgramError& error) {
      Fail("tensor " + std::to_string(i) + ": " + error.what());
    }
  }
  const int64_t n_steps = in.In("n_steps", 0, kLargest);
  for (int64_t i = 0; i < n_steps; ++i) {
    try {
      const int64_t opcode = in.In("opcode", 1, kLoopCode);
      Reader part = in.Part("the step", in.In("n_words", 0, kLargest));
      Step step = ReadStep(opcode, part, n_tensors - 1, loops);
      part.Done("the payload");
      CheckStep(program, step);
      program.steps.push_back(std::move(step));
    } catch (const ProgramError& error) {
      Fail("step " + std::to_string(i) + ": " + error.what());
    }
  }
  in.Done("the last step");
  return program;
}

}  // namespace

int64_t Tensor::count() const {
  if (std::find(dims, dims + rank, 0) != dims + rank) return 0;
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= dims[i];
  return n;
}

bool Tensor::dense() const {
  if (count() == 0) return true;
  int64_t next = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (dims[i] != 1 && strides[i] != next) return false;
    next *= dims[i];
  }
  return true;
}

bool Tensor::same_dims(const Tensor& other) const {
  return rank == other.rank && std::equal(dims, dims + rank, other.dims);
}

bool Tensor::same_view(const Tensor& other) const {
  return place == other.place && offset == other.offset && same_dims(other) &&
         std::equal(strides, strides + rank, other.strides);
}

int64_t Tensor::extent() const {
  if (count() == 0) return 0;
  int64_t last = 0;
  for (int i = 0; i < rank; ++i) last += (dims[i] - 1) * strides[i];
  return (last + 1) * SizeOf(dtype);
}

bool Tensor::overlaps(const Tensor& other) const {
  if (place == kOwn) return other.place == kOwn && offset == other.offset;
  return place == other.place && offset < other.offset + other.extent() && other.offset < offset + extent();
}

Tensor Tensor::densely(int new_place, int64_t new_offset) const {
  Tensor t = *this;
  t.place = new_place;
  t.offset = new_offset;
  int64_t next = 1;
  for (int i = rank - 1; i >= 0 && count(); --i) {
    t.strides[i] = next;
    next *= dims[i];
  }
  return t;
}

Program Parse(const int64_t* words, size_t n) {
  try {
    Reader in(words, n);
    return ParseAll(in, 0);
  } catch (const ProgramError& error) {
    Fail(std::string("region program: ") + error.what());
  }
}

Problem ParseProblem(const int64_t* words, size_t n) {
  Reader in(words, n);
  Problem p{};
  p.ns = static_cast<int>(in.In("n_spatial", 0, 3));
  p.batch = in.In("batch", 1, kLargest);
  in.Several("spatial size", p.ns, 1, kLargest, p.spatial);
  p.c_in = in.In("c_in", 1, kLargest);
  in.Several("kernel", p.ns, 1, kLargest, p.kernel);
  p.c_out = in.In("c_out", 1, kLargest);
  in.Several("stride", p.ns, 1, kLargest, p.strides);
  in.Several("dilation", p.ns, 1, kLargest, p.dilation);
  in.Several("low padding", p.ns, 0, kLargest, p.low);
  in.Several("high padding", p.ns, 0, kLargest, p.high);
  p.groups = in.In("groups", 1, kLargest);
  in.Done("the problem");
  if (p.c_in % p.groups || p.c_out % p.groups) Fail("groups do not divide the channels");
  if (p.ns == 0 && p.groups != 1) Fail("a matrix product has no groups");
  return p;
}

}  // namespace jaxq8
