/* Answers each line of input by the same line, in a second thread in the mode of the other ABI. Ends badly if a register
 * that its task's own code does not see changes. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

extern const char echo_start[], echo_end[];
/* Room below the thread's stack for a signal frame with all the extended state that a processor has. */
#define ROOM 0x8000

void enter(void *page, void *code);

#ifdef __x86_64__
__asm__(".text\n"
        "enter: mov %rdi, %rax\n lea 2048(%rax), %rsp\n pushq $0x23\n push %rsi\n lretq\n"
        ".code32\n"
        "echo_start: lea 2048(%eax), %edi\n"
        "1: mov $3, %eax\n xor %ebx, %ebx\n mov %edi, %ecx\n mov $64, %edx\n int $0x80\n"
        "mov %eax, %edx\n mov $4, %eax\n mov $1, %ebx\n int $0x80\n jmp 1b\n"
        "echo_end:\n"
        ".code64\n");
#else
__asm__(".text\n"
        "enter: mov 4(%esp), %edi\n mov 8(%esp), %esi\n push $0x33\n push %esi\n lret\n"
        ".code64\n"
        "echo_start: mov %edi, %r12d\n movabs $0x1234567812345678, %r15\n mov %r15, %rbx\n"
        "1: xor %eax, %eax\n xor %edi, %edi\n lea 2048(%r12), %rsi\n mov $64, %edx\n syscall\n"
        "mov %rax, %rdx\n mov $1, %eax\n mov $1, %edi\n syscall\n"
        "cmp %rbx, %r15\n jne 2f\n movabs $0x1234567812345678, %rax\n cmp %rax, %rbx\n je 1b\n"
        "2: ud2\n"
        "echo_end:\n"
        ".code32\n");
#endif

static void *thread(void *page)
{
    enter(page, (char *)page + 3072);
    return 0;
}

int main(void)
{
    pthread_t other;
    char *room = mmap((void *)0x20000000, ROOM + 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    void *page = room + ROOM;
    memcpy((char *)page + 3072, echo_start, echo_end - echo_start);
    pthread_create(&other, 0, thread, page);
    return pthread_join(other, 0);
}
