#include "cpu/attention.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>

#include "check.h"
#include "cpu/attention_table.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"
#include "cpu/scratch.h"

namespace rcdm_fast::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kSmallestShare = 64;  // rows of q that make it worth packing k and v once more, in another thread

}  // namespace

Tensor attention(const Tensor& qkv, int64_t heads, bool new_order) {
  const auto* all = choose(&kAttentionBase, &kAttentionAvx2, &kAttentionAvx512, &kAttentionAvx512Bf16);
  const auto* loops = format_of(*all, qkv.scalar_type(), "attention");
  RCDM_FAST_CHECK(qkv.is_cpu() && qkv.dim() == 3 && qkv.is_contiguous(),
                  "attention: qkv must be [N,L,3C], contiguous, on the CPU");
  const int64_t n = qkv.size(0), length = qkv.size(1), packed = qkv.size(2);
  RCDM_FAST_CHECK(heads > 0 && packed > 0 && packed % (3 * heads) == 0, "attention: ", packed,
                  " channels are not q, k and v of ", heads, " heads");
  const int64_t channels = packed / 3, width = channels / heads, bytes = static_cast<int64_t>(qkv.element_size());
  const std::array<int64_t, 3> shape{n, length, channels};
  Tensor out = torch::stable::empty(shape, qkv.scalar_type(), std::nullopt, qkv.device());
  if (out.numel() == 0) {
    return out;
  }
  const auto* from = static_cast<const char*>(qkv.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t next = (new_order ? channels : width) * bytes;  // from q to k, and from k to v
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = (threads + n * heads - 1) / (n * heads), most = (length + kSmallestShare - 1) / kSmallestShare;
  const int64_t shares = std::clamp<int64_t>(wanted, 1, most), share = (length + shares - 1) / shares;
  torch::stable::parallel_for(0, n * heads * shares, 1, [&](int64_t begin, int64_t end) {
    const Scratch memory = make_scratch(loops->scratch(length, width));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % shares, head = task / shares % heads, image = task / (shares * heads);
      const char* q = from + (image * length * packed + head * width * (new_order ? 1 : 3)) * bytes;
      loops->attend({q, q + next, q + 2 * next, packed, to + (image * length * channels + head * width) * bytes,
                     channels, length, width, part * share, std::min(length, (part + 1) * share)},
                    memory.get());
    }
  });
  return out;
}

}  // namespace rcdm_fast::cpu
