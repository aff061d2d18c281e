/* Where a Cortex-M begins: the floating-point unit is switched on, then C starts. */
#include <stdint.h>

extern uint32_t top_of_stack;
extern void _start(void);
void begin(void);

void begin(void)
{
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: coprocessors 10 and 11 */
    __asm volatile("dsb\n isb");
    _start();
}

/* Memory for printf, behind the program's own: not every board tells where there is some. */
extern char end;
void *_sbrk(int more);

void *_sbrk(int more)
{
    static char *free = &end;
    char *const found = free;
    free += more;
    return found;
}

static void stop(void)
{
    for (;;) {
    }
}

typedef void (*handler)(void);

__attribute__((section(".vectors"), used)) static const handler vectors[16] = {
    (handler)&top_of_stack, begin, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop,
    stop,                   stop,  stop, stop,
};
