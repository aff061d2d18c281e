/* ABOUT */
#ifndef @H
#define @H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @INPUTS <INPUTS>
#define @OUTPUTS <OUTPUTS>
#define @STATE <STATE>

/* What is carried from step to step, in the caller's memory; as many of them as you like. */
typedef struct { float data[@STATE]; } @state;

/* Puts a state to where sequences start; once before the first step. */
void @reset(@state *s);

/* One time step: x has @INPUTS numbers, y gets @OUTPUTS; they may be the same memory. */
void @step(@state *s, const float *x, float *y);

/* A block of steps, one behind the other in x and in y, in memory of their own. */
void @run(@state *s, const float *x, float *y, size_t steps);

/* Parts, sizes, version, hash of the weights, units of the inputs. */
extern const char @about[];

#ifdef __cplusplus
}
#endif

#endif
