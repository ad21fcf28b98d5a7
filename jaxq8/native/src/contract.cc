// CONTRACT: a convolution or a matrix product of oneDNN with its epilogue inside. Several ways to say the same are tried, and
// the one with the best implementation and the fewest copies is taken.
#include <cmath>
#include <optional>

#include "descs.h"

namespace jaxq8 {
namespace {

// dst_scale divides, our rescale multiplies.
class InvertAction final : public Action {
 public:
  InvertAction(const Tensor& from, int64_t scratch) : from_(from), scratch_(scratch) {}

  void Run(const Call& call) const override {
    *reinterpret_cast<float*>(call.At(kScratch, scratch_)) = 1.f / *reinterpret_cast<const float*>(call.At(from_));
  }

  std::string Describe() const override { return "inverse of rescale"; }

 private:
  Tensor from_;
  int64_t scratch_;
};

enum class Residual { kNone, kInPlace, kAdded, kCopied };  // a `sum`; a binary post-op; copied to dst, then a `sum`

// One way to say the contraction to oneDNN.
struct Form {
  bool any_weights;  // oneDNN chooses the layout, and a reorder runs in each call
  bool dense;        // strided images are copied
  Residual residual;

  int copies() const { return (any_weights ? 4 : 0) + (dense ? 2 : 0) + (residual == Residual::kCopied ? 1 : 0); }
};

struct Made {
  Form form;
  dnnl::primitive primitive;
  dnnl::primitive_desc description;
  Desc weights;
  std::string name;
  int badness;
};

class Contraction {
 public:
  Contraction(Collector& collector, const Contract& step)
      : collector_(collector), s_(step), src_(At(s_.src)), weights_(At(s_.weights)), dst_(At(s_.dst)),
        c_in_(src_.dims[src_.rank - 1]), c_out_(dst_.dims[dst_.rank - 1]),
        mask_(ChannelMask(s_.ns, s_.groups)) {
    given_ = GivenWeights();
    const bool eight = dst_.dtype == Dtype::kU8 || dst_.dtype == Dtype::kS8;
    const float least = dst_.dtype == Dtype::kU8 ? 0.f : -128.f, most = dst_.dtype == Dtype::kU8 ? 255.f : 127.f;
    clips_ = eight ? s_.lo > least || s_.hi < most : std::isfinite(s_.lo) || std::isfinite(s_.hi);
    if (dst_.dtype == Dtype::kS32) clips_ = false;
    scales_dst_ = s_.rescale >= 0 && eight && !clips_ && s_.function == Function::kNone;
  }

  void Collect() {
    std::optional<Made> best;
    std::string refused;
    for (const Form& form : Forms()) {
      if (best && best->badness * 100 + best->form.copies() <= form.copies()) continue;
      std::optional<Made> made;
      try {
        made = Make(form);
      } catch (const dnnl::error& error) {  // views that overlap themselves, for instance; copies of them do not
        refused = std::string(": ") + error.what();
      }
      if (!made) continue;
      if (!best || made->badness * 100 + made->form.copies() < best->badness * 100 + best->form.copies()) best = std::move(made);
    }
    if (!best) throw ProgramError("oneDNN has no implementation of it" + refused);
    Emit(*best);
  }

 private:
  const Tensor& At(int id) const { return collector_.program.tensors[static_cast<size_t>(id)]; }

  // The descriptor of the weights as they come.
  Desc GivenWeights() const {
    if (s_.kind == 2) {
      const Desc desc = PackedWeights(ParseProblem(s_.problem.data(), s_.problem.size()));
      if (static_cast<int64_t>(desc.get_size()) != weights_.count()) {
        throw ProgramError("the packed weights have " + std::to_string(weights_.count()) +
                           " bytes, the layout of the problem has " + std::to_string(desc.get_size()));
      }
      return desc;
    }
    const int64_t* w = weights_.strides;
    const Dims dims = WeightDims(s_.ns, c_in_, c_out_, s_.kernel, s_.groups);
    if (s_.ns == 0) return Desc(dims, Type::s8, s_.kind == 1 ? Dims{w[1], w[0]} : Dims{w[0], w[1]});
    Dims strides{w[s_.ns + 1], w[s_.ns]};
    if (s_.groups > 1) strides.insert(strides.begin(), c_out_ / s_.groups * w[s_.ns + 1]);
    strides.insert(strides.end(), w, w + s_.ns);
    return Desc(dims, Type::s8, strides);
  }

  std::vector<Form> Forms() const {
    std::vector<Residual> residuals{Residual::kNone};
    bool strided = !src_.dense() || !dst_.dense();
    if (s_.residual >= 0) {
      const Tensor& residual = At(s_.residual);
      strided = strided || !residual.dense();
      const bool same_size = SizeOf(residual.dtype) == SizeOf(dst_.dtype);
      if (residual.same_view(dst_) && same_size) {
        residuals = {Residual::kInPlace};
      } else if (same_size) {
        residuals = {Residual::kAdded, Residual::kCopied};
      } else {
        residuals = {Residual::kAdded};
      }
    }
    std::vector<Form> forms;
    for (bool any : {false, true}) {
      for (bool dense : {false, true}) {
        if (dense && !strided) continue;
        for (Residual residual : residuals) forms.push_back({any, dense, residual});
      }
    }
    return forms;
  }

  // Where an image is read or written in a form: where it lies, or a dense one in scratch memory.
  static Tensor Placed(const Tensor& t, bool dense) { return dense ? t.densely(t.place, t.offset) : t; }

  dnnl::primitive_attr Attributes(const Form& form) const {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (s_.mult >= 0) attr.set_scales_mask(DNNL_ARG_WEIGHTS, mask_);
    if (scales_dst_) attr.set_scales_mask(DNNL_ARG_DST, 0);
    dnnl::post_ops post;
    if (form.residual == Residual::kInPlace || form.residual == Residual::kCopied) {
      post.append_sum(1.f, 0, TypeOf(At(s_.residual).dtype));
    } else if (form.residual == Residual::kAdded) {
      post.append_binary(dnnl::algorithm::binary_add, DescOf(Placed(At(s_.residual), form.dense)));
    }
    AppendFunction(post);
    if (s_.rescale >= 0 && !scales_dst_) post.append_binary(dnnl::algorithm::binary_mul, One());
    if (s_.shift >= 0) post.append_binary(dnnl::algorithm::binary_add, One());
    if (clips_ && s_.lo == 0.f && s_.hi == INFINITY) {
      post.append_eltwise(dnnl::algorithm::eltwise_relu, 0.f, 0.f);
    } else if (clips_) {
      // A float number that is no infinity: 0 * infinity would be NaN in some of oneDNN's kernels.
      constexpr float most = 3.4028234e38f;
      post.append_eltwise(dnnl::algorithm::eltwise_clip, std::fmax(s_.lo, -most), std::fmin(s_.hi, most));
    }
    attr.set_post_ops(post);
    return attr;
  }

  void AppendFunction(dnnl::post_ops& post) const {
    using dnnl::algorithm;
    switch (s_.function) {
      case Function::kNone: return;
      case Function::kGeluErf: return post.append_eltwise(algorithm::eltwise_gelu_erf, 0.f, 0.f);
      case Function::kGeluTanh: return post.append_eltwise(algorithm::eltwise_gelu_tanh, 0.f, 0.f);
      case Function::kSwish: return post.append_eltwise(algorithm::eltwise_swish, 1.f, 0.f);
      case Function::kLogistic: return post.append_eltwise(algorithm::eltwise_logistic, 0.f, 0.f);
      case Function::kTanh: return post.append_eltwise(algorithm::eltwise_tanh, 0.f, 0.f);
      case Function::kHardSwish: return post.append_eltwise(algorithm::eltwise_hardswish, 1.f / 6, 0.5f);
    }
  }

  // One number, with as many axes as dst.
  Desc One() const {
    return Desc(Dims(static_cast<size_t>(dst_.rank), 1), Type::f32, Dims(static_cast<size_t>(dst_.rank), 1));
  }

  Desc Bias() const {
    if (s_.offset < 0) return Desc();
    return s_.ns == 0 ? Desc({1, c_out_}, Type::f32, Dims{c_out_, 1}) : Desc({c_out_}, Type::f32, Dims{1});
  }

  std::optional<Made> Make(const Form& form) const {
    const Desc src = DescOf(Placed(src_, form.dense)), dst = DescOf(Placed(dst_, form.dense));
    const Desc weights = form.any_weights ? Desc(given_.get_dims(), Type::s8, dnnl::memory::format_tag::any) : given_;
    const dnnl::primitive_attr attr = Attributes(form);
    if (s_.ns == 0) return Finish<dnnl::matmul>(form, Geometry::Matmul(src, weights, Bias(), dst, attr));
    const Geometry geometry{s_.ns, s_.strides, s_.dilation, s_.low, s_.high};
    return Finish<dnnl::convolution_forward>(form, geometry.Convolution(src, weights, Bias(), dst, attr));
  }

  template <typename Primitive>
  std::optional<Made> Finish(const Form& form, const typename Primitive::primitive_desc& pd) const {
    if (!pd) return std::nullopt;
    const std::string name = pd.impl_info_str();
    return Made{form, Primitive(pd), pd, pd.weights_desc(), name, BadnessOf(name)};
  }

  // A reorder of the weights into scratch memory, by way of the plain order where oneDNN has none between the two.
  int64_t Reorder(const Desc& from, int place, int64_t offset, const Desc& to) {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::reorder::primitive_desc pd(Engine(), from, Engine(), to, attr, true);
    if (!pd) {
      Dims dims = from.get_dims(), strides(dims.size(), 1);
      for (size_t i = dims.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * dims[i];
      const Desc plain(dims, Type::s8, strides);
      if (plain == from || plain == to) throw ProgramError("oneDNN cannot reorder the weights");
      return Reorder(plain, kScratch, Reorder(from, place, offset, plain), to);
    }
    const int64_t at = collector_.Scratch(to.get_size());
    collector_.Add(dnnl::reorder(pd), pd, {{DNNL_ARG_FROM, from, place, offset}, {DNNL_ARG_TO, to, kScratch, at}},
                   std::string("reorder of weights ") + pd.impl_info_str());
    return at;
  }

  // The tensor that a form uses for an image, copied to scratch memory before if need be.
  Tensor Image(const Tensor& t, bool dense, bool copied_in) {
    if (!dense || t.dense()) return t;
    const Tensor to = t.densely(kScratch, collector_.Scratch(static_cast<size_t>(t.count() * SizeOf(t.dtype))));
    if (copied_in) collector_.actions.push_back(MakeCopy(t, to));
    return to;
  }

  void Emit(const Made& made) {
    const bool dense = made.form.dense;
    int place = weights_.place;
    int64_t offset = weights_.offset;
    if (made.weights != given_) {
      offset = Reorder(given_, place, offset, made.weights);
      place = kScratch;
    }
    const Tensor src = Image(src_, dense, true), dst = Image(dst_, dense, false);
    std::vector<Argument> arguments{{DNNL_ARG_SRC, DescOf(src), src.place, src.offset},
                                    {DNNL_ARG_WEIGHTS, made.weights, place, offset},
                                    {DNNL_ARG_DST, DescOf(dst), dst.place, dst.offset}};
    const Desc channels({c_out_}, Type::f32, Dims{1});
    if (s_.offset >= 0) arguments.push_back({DNNL_ARG_BIAS, Bias(), At(s_.offset).place, At(s_.offset).offset});
    if (s_.mult >= 0) {
      arguments.push_back({DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, channels, At(s_.mult).place, At(s_.mult).offset});
    }
    int post = 0;
    if (s_.residual >= 0) {
      const Tensor& residual = At(s_.residual);
      if (made.form.residual == Residual::kAdded) {
        const Tensor added = Image(residual, dense, true);
        arguments.push_back({DNNL_ARG_ATTR_MULTIPLE_POST_OP(post) | DNNL_ARG_SRC_1, DescOf(added), added.place, added.offset});
      } else if (!dst.same_view(residual)) {
        Tensor bytes = dst;  // the residual's codes in dst's place; the two may differ in sign
        bytes.dtype = residual.dtype;
        collector_.actions.push_back(MakeCopy(residual, bytes));
      }
      ++post;
    }
    if (s_.function != Function::kNone) ++post;
    if (scales_dst_) {
      const int64_t inverse = collector_.Scratch(4);
      collector_.actions.push_back(std::make_unique<InvertAction>(At(s_.rescale), inverse));
      arguments.push_back({DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST, Desc({1}, Type::f32, Dims{1}), kScratch, inverse});
    } else if (s_.rescale >= 0) {
      const Tensor& rescale = At(s_.rescale);
      arguments.push_back({DNNL_ARG_ATTR_MULTIPLE_POST_OP(post++) | DNNL_ARG_SRC_1, One(), rescale.place, rescale.offset});
    }
    if (s_.shift >= 0) {
      const Tensor& shift = At(s_.shift);
      arguments.push_back({DNNL_ARG_ATTR_MULTIPLE_POST_OP(post) | DNNL_ARG_SRC_1, One(), shift.place, shift.offset});
    }
    collector_.Add(made.primitive, made.description, std::move(arguments), made.name);
    if (!dst.same_view(dst_)) collector_.actions.push_back(MakeCopy(dst, dst_));
  }

  Collector& collector_;
  const Contract& s_;
  const Tensor &src_, &weights_, &dst_;
  int64_t c_in_, c_out_;
  int mask_;
  Desc given_;
  bool clips_, scales_dst_;
};

}  // namespace

void CollectContract(Collector& collector, const Contract& step) { Contraction(collector, step).Collect(); }

}  // namespace jaxq8
