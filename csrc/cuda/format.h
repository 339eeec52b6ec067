// How numbers lie in memory, named for launchers that know no torch.

#pragma once

namespace rcdm_fast::cuda {

enum class Format : int { kFloat32, kBFloat16, kFloat16 };

}  // namespace rcdm_fast::cuda
