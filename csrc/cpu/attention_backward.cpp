#include "cpu/attention_backward.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>

#include "check.h"
#include "cpu/attention_backward_table.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"
#include "cpu/scratch.h"

namespace rcdm_fast::cpu {

using torch::stable::Tensor;

// A task is a head of an image: its sums know neither the batch nor the threads.
Tensor attention_backward(const Tensor& grad, const Tensor& qkv, int64_t heads, bool new_order) {
  const auto* all = choose(&kAttentionBackwardBase, &kAttentionBackwardAvx2, &kAttentionBackwardAvx512);
  const auto* loops = format_of(*all, qkv.scalar_type(), "attention");
  RCDM_FAST_CHECK(qkv.is_cpu() && qkv.dim() == 3 && qkv.is_contiguous(),
                  "attention: qkv must be [N,L,3C], contiguous, on the CPU");
  const int64_t n = qkv.size(0), length = qkv.size(1), packed = qkv.size(2);
  RCDM_FAST_CHECK(heads > 0 && packed > 0 && packed % (3 * heads) == 0, "attention: ", packed,
                  " channels are not q, k and v of ", heads, " heads");
  const int64_t channels = packed / 3, width = channels / heads, bytes = static_cast<int64_t>(qkv.element_size());
  RCDM_FAST_CHECK(grad.is_cpu() && grad.dim() == 3 && grad.is_contiguous() && grad.size(0) == n &&
                      grad.size(1) == length && grad.size(2) == channels && grad.scalar_type() == qkv.scalar_type(),
                  "attention: grad does not fit the result");
  const std::array<int64_t, 3> shape{n, length, packed};
  Tensor of_qkv = torch::stable::empty(shape, qkv.scalar_type(), std::nullopt, qkv.device());
  if (grad.numel() == 0) {
    return of_qkv;
  }
  const auto* from = static_cast<const char*>(qkv.const_data_ptr());
  const auto* given = static_cast<const char*>(grad.const_data_ptr());
  auto* to = static_cast<char*>(of_qkv.mutable_data_ptr());
  const int64_t next = (new_order ? channels : width) * bytes;  // from q to k, and from k to v
  torch::stable::parallel_for(0, n * heads, 1, [&](int64_t begin, int64_t end) {
    const Scratch memory = make_scratch(all->scratch(length, width));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / heads, head = task % heads;
      const int64_t q = (image * length * packed + head * width * (new_order ? 1 : 3)) * bytes;
      loops->differentiate({from + q, from + q + next, from + q + 2 * next, to + q, to + q + next, to + q + 2 * next,
                            packed, given + (image * length * channels + head * width) * bytes, channels, length, width},
                           memory.get());
    }
  });
  return of_qkv;
}

}  // namespace rcdm_fast::cpu
