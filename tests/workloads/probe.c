/* Does nothing: tells the harness that programs of this ABI can be built and run. */
#include "workload.h"

CASE(probe)
{
}
