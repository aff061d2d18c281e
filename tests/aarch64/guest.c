/* Calls functions of generated code on this processor, with the memory of another process.
 *
 * It is told a function's address and its arguments on standard input. The code and all that the
 * arguments point to lie where they lie in the process at the other end: a page is fetched from
 * there when it is first touched, and handed back when the function is done. Code stays.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, MOST = 1 << 18, ARGUMENTS = 4 };

struct request {
    uint64_t code_end, function, arguments[ARGUMENTS];
};

static uint64_t pages[MOST];
static int count;
static uint64_t code_end;
static char alternative[1 << 16];

static void take(void *place, size_t size)
{
    for (char *p = place; size;) {
        ssize_t n = read(0, p, size);
        if (n <= 0)
            _exit(n < 0);
        p += n;
        size -= n;
    }
}

static void give(const void *place, size_t size)
{
    for (const char *p = place; size;) {
        ssize_t n = write(1, p, size);
        if (n <= 0)
            _exit(1);
        p += n;
        size -= n;
    }
}

static void fetch(int number, siginfo_t *info, void *context)
{
    uint64_t address = (uint64_t)info->si_addr & -(uint64_t)PAGE;
    char there = 0;
    (void)number, (void)context;
    give(&address, sizeof address);
    take(&there, 1);
    if (!there || count == MOST)
        _exit(2);
    void *place = mmap((void *)address, PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (place == MAP_FAILED)
        _exit(3);
    take(place, PAGE);
    if (address < code_end) {
        __builtin___clear_cache(place, (char *)place + PAGE);
        mprotect(place, PAGE, PROT_READ | PROT_EXEC);
    } else
        pages[count++] = address;
}

int main(void)
{
    stack_t stack = {.ss_sp = alternative, .ss_size = sizeof alternative};
    struct sigaction action = {.sa_sigaction = fetch, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct request asked;
    const uint64_t done = 0;
    sigaltstack(&stack, 0);
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    for (;;) {
        take(&asked, sizeof asked);
        code_end = asked.code_end;
        uint64_t *a = asked.arguments;
        ((void (*)(uint64_t, uint64_t, uint64_t, uint64_t))asked.function)(a[0], a[1], a[2], a[3]);
        give(&done, sizeof done);
        for (; count; count--) {
            void *place = (void *)pages[count - 1];
            give(&pages[count - 1], sizeof *pages);
            give(place, PAGE);
            munmap(place, PAGE);
        }
        give(&done, sizeof done);
    }
}
