/* %NAME% on its own recorded inputs: step by step, in blocks, and two at once. */
#include "%NAME%.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

TABLES
static @state one, two;
static float found[STEPS * @OUTPUTS], again[STEPS * @OUTPUTS];

static double error_of(const float *y)
{
    double most = 0.0;
    for (size_t i = 0; i < STEPS * @OUTPUTS; i++) {
        const double d = (double)y[i] - (double)outputs[i];
        const double a = d < 0.0 ? -d : d;
        if (!(a <= most)) { most = a; }
    }
    return most;
}

static void time_steps(long steps)
{
    float y[@OUTPUTS];
    const clock_t begun = clock();
    for (long t = 0; t < steps; t++) {
        @step(&one, inputs + (size_t)(t % STEPS) * @INPUTS, y);
    }
    const double seconds = (double)(clock() - begun) / (double)CLOCKS_PER_SEC;
    printf("nanoseconds %.1f\n", 1e9 * seconds / (double)steps);
}

int main(int argc, char **argv)
{
    for (size_t t = 0; t < STEPS; t++) {
        const size_t s = t % STRETCH;
        if (s == 0) { @reset(&one); @reset(&two); }
        @step(&one, inputs + t * @INPUTS, found + t * @OUTPUTS);
        if (s % 7 == 0) { /* the other one goes on in blocks meanwhile */
            size_t steps = STRETCH - s < 7 ? STRETCH - s : 7;
            if (STEPS - t < steps) { steps = STEPS - t; }
            @run(&two, inputs + t * @INPUTS, again + t * @OUTPUTS, steps);
        }
    }
    const double error = error_of(found);
    const int same = memcmp(found, again, sizeof found) == 0;
    const int right = same && error <= LIMIT;
    @reset(&one);
    @reset(&two);
    printf("%s error %.3e allowed %.3e steps %d%s\n", right ? "PASS" : "FAIL", error, LIMIT,
           STEPS, same ? "" : " blocks differ from steps");
    if (argc > 1) { time_steps(atol(argv[1])); }
    return right ? 0 : 1;
}
