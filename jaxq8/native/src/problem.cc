// The layout that oneDNN chooses for the weights of a problem.
#include "descs.h"
#include "region.h"

namespace jaxq8 {
namespace {

Tensor Image(Dtype dtype, int64_t batch, const int64_t* spatial, int ns, int64_t channels) {
  Tensor t;
  t.dtype = dtype;
  t.rank = ns + 2;
  t.dims[0] = batch;
  std::copy(spatial, spatial + ns, t.dims + 1);
  t.dims[ns + 1] = channels;
  __int128 count = 1;
  for (int i = 0; i < t.rank; ++i) {
    count *= t.dims[i];
    if (count >= (int64_t{1} << 31)) throw ProgramError("the problem is too large");
  }
  return t.densely(kArena, 0);
}

}  // namespace

Desc PackedWeights(const Problem& p) {
  int64_t out[3];
  __int128 weights = static_cast<__int128>(p.c_in / p.groups) * p.c_out;
  for (int i = 0; i < p.ns; ++i) {
    out[i] = Places(p.spatial[i], p.low[i], p.high[i], p.kernel[i], p.dilation[i], p.strides[i]);
    if (out[i] == 0) throw ProgramError("the problem's kernel is larger than its image");
    weights *= p.kernel[i];
  }
  if (weights >= (int64_t{1} << 31)) throw ProgramError("the problem is too large");
  const Desc src = DescOf(Image(Dtype::kU8, p.batch, p.spatial, p.ns, p.c_in));
  const Desc dst = DescOf(Image(Dtype::kU8, p.batch, out, p.ns, p.c_out));
  const Desc any(WeightDims(p.ns, p.c_in, p.c_out, p.kernel, p.groups), Type::s8, dnnl::memory::format_tag::any);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attr.set_scales_mask(DNNL_ARG_WEIGHTS, ChannelMask(p.ns, p.groups));
  if (p.ns == 0) {
    const Desc bias({1, p.c_out}, Type::f32, dnnl::memory::format_tag::ab);
    const auto pd = Geometry::Matmul(src, any, bias, dst, attr);
    if (!pd) throw ProgramError("oneDNN has no implementation of the problem");
    return pd.weights_desc();
  }
  const Desc bias({p.c_out}, Type::f32, dnnl::memory::format_tag::a);
  const auto pd = Geometry{p.ns, p.strides, p.dilation, p.low, p.high}.Convolution(src, any, bias, dst, attr);
  if (!pd) throw ProgramError("oneDNN has no implementation of the problem");
  return pd.weights_desc();
}

std::vector<int64_t> LayoutWords(const Problem& problem) {
  const Desc desc = PackedWeights(problem);
  if (desc.get_format_kind() != dnnl::memory::format_kind::blocked) throw ProgramError("the layout is not one of blocks");
  const Dims dims = desc.get_dims(), padded = desc.get_padded_dims(), strides = desc.get_strides();
  const Dims blocks = desc.get_inner_blks(), axes = desc.get_inner_idxs();
  std::vector<int64_t> out{static_cast<int64_t>(dims.size())};
  int64_t bytes = 1;
  for (int64_t dim : padded) bytes *= dim;
  if (desc.get_size() != static_cast<size_t>(bytes)) throw ProgramError("the layout has more than its blocks");
  for (const Dims& part : {dims, padded, strides}) out.insert(out.end(), part.begin(), part.end());
  out.push_back(static_cast<int64_t>(blocks.size()));
  out.insert(out.end(), blocks.begin(), blocks.end());
  out.insert(out.end(), axes.begin(), axes.end());
  out.push_back(bytes);
  return out;
}

}  // namespace jaxq8
