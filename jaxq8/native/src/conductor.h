// The one thread that runs all regions of a process. Every thread that starts parallel work has a team of OpenMP threads of its
// own, and XLA calls from changing threads: the teams would wait for each other's processors, actively and for milliseconds.
#pragma once

namespace jaxq8 {

// Runs function(context) on that thread and returns when it is done. Calls from several threads come one after the other. What
// the function throws is thrown here. In a forked process, which has no other threads, the calling thread runs it.
void Conduct(void (*function)(void*), void* context);

}  // namespace jaxq8
