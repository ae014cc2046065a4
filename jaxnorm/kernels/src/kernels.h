// The kernels as each instruction set has them.
#ifndef JAXNORM_KERNELS_H_
#define JAXNORM_KERNELS_H_

#include "call.h"

namespace jaxnorm {

namespace baseline {
Plan plan(Call& call);
}
#ifdef JAXNORM_X86
namespace avx2 {
Plan plan(Call& call);
}
namespace avx512 {
Plan plan(Call& call);
}
#endif

}  // namespace jaxnorm

#endif  // JAXNORM_KERNELS_H_
