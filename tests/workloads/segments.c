/* Segment bases: the GDT slots of ia32, fs and gs base of x86_64. */
#include "workload.h"
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <semaphore.h>

enum { THREADS = 4 };
static volatile int arrived;
static sem_t release;

#ifdef __x86_64__
static uint64_t read_gs(void)
{
	uint64_t value;
	__asm__ volatile("mov %%gs:0, %0" : "=r"(value));
	return value;
}

static void *thread(void *argument)
{
	uint64_t *area = (uint64_t *)(void *)map_anonymous(PAGE), base;
	area[0] = (uint64_t)(intptr_t)argument * 1111;
	MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, area));
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	MUST(sem_wait(&release));
	CHECK(read_gs() == (uint64_t)(intptr_t)argument * 1111, "gs:0 is %lu", read_gs());
	MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
	CHECK(base == (uint64_t)area, "gs base %#lx, was %p", base, (void *)area);
	MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &base));
	CHECK(base == *(uint64_t *)base && base == (uint64_t)pthread_self(), "fs base %#lx", base);
	return NULL;
}
#else
static uint32_t read_fs(void)
{
	uint32_t value;
	__asm__ volatile("mov %%fs:0, %0" : "=r"(value));
	return value;
}

/* Takes a free slot of the three and returns its number. */
static struct user_desc set_slot(void *base, unsigned limit, int in_pages)
{
	struct user_desc slot = {
		.entry_number = (unsigned)-1,
		.base_addr = (unsigned)(uintptr_t)base,
		.limit = limit,
		.seg_32bit = 1,
		.limit_in_pages = (unsigned)in_pages,
		.useable = 1,
	};
	MUST(syscall(SYS_set_thread_area, &slot));
	return slot;
}

static void check_slot(const struct user_desc *before)
{
	struct user_desc after = { .entry_number = before->entry_number };
	MUST(syscall(SYS_get_thread_area, &after));
	CHECK(memcmp(before, &after, sizeof(after)) == 0, "slot %u: base %#x limit %#x, was %#x %#x",
	      before->entry_number, after.base_addr, after.limit, before->base_addr, before->limit);
}

static void *thread(void *argument)
{
	uint32_t *area = (uint32_t *)(void *)map_anonymous(PAGE), selector;
	area[0] = (uint32_t)(intptr_t)argument * 1111;
	/* glibc has slot 12 and gs; 13 goes to fs, as in Wine; 14 is small and in no register. */
	struct user_desc second = set_slot(area, PAGE - 1, 0), third = set_slot(area + 4, 1, 1);
	uint32_t wanted = second.entry_number * 8 + 3;
	__asm__ volatile("mov %0, %%fs" : : "r"(wanted));
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	MUST(sem_wait(&release));
	__asm__ volatile("mov %%fs, %0" : "=r"(selector));
	CHECK((selector & 0xffff) == wanted, "fs is %#x, was %#x", selector, wanted);
	CHECK(read_fs() == (uint32_t)(intptr_t)argument * 1111, "fs:0 is %u", read_fs());
	check_slot(&second);
	check_slot(&third);
	return NULL;
}
#endif

CASE(bases)
{
	pthread_t threads[THREADS];
	MUST(sem_init(&release, 0, 0));
	for (intptr_t i = 0; i < THREADS; i++)
		MUST0(pthread_create(&threads[i], NULL, thread, (void *)(i + 1)));
	await(&arrived, THREADS);
	checkpoint();
	for (int i = 0; i < THREADS; i++)
		MUST(sem_post(&release));
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* Data segment registers that hold something unusual but legal. */
CASE(selectors)
{
	uint32_t user_data = 0x2b, null = 0, es, found;
	__asm__ volatile("mov %%es, %0" : "=r"(es));
	(void)user_data;
#ifdef __x86_64__
	__asm__ volatile("mov %0, %%es" : : "r"(user_data));
	__asm__ volatile("mov %0, %%gs" : : "r"(user_data));
	checkpoint();
	__asm__ volatile("mov %%es, %0" : "=r"(found));
	CHECK((found & 0xffff) == user_data, "es is %#x", found);
	__asm__ volatile("mov %%gs, %0" : "=r"(found));
	CHECK((found & 0xffff) == user_data, "gs is %#x", found);
	__asm__ volatile("mov %0, %%gs" : : "r"(null));
#else
	__asm__ volatile("mov %0, %%fs" : : "r"(es));
	checkpoint();
	__asm__ volatile("mov %%fs, %0" : "=r"(found));
	CHECK((found & 0xffff) == (es & 0xffff), "fs is %#x", found);
	__asm__ volatile("mov %0, %%fs" : : "r"(null));
#endif
}

/*
 * A thread in the mode of the other ABI: 32-bit code in an x86_64 task, as Wine's new WoW64 does, and 64-bit code in an
 * ia32 task. What the task is does not change by that.
 */
struct mode {
	volatile uint32_t rounds;
	volatile uint32_t stop;
	uint64_t stack;
	/* Operand of the far jump back. */
	uint32_t back;
	uint16_t selector;
	uint16_t unused;
	volatile uint32_t wrong;
};

extern const char other_mode_start[], other_mode_back[], other_mode_end[];
void enter_other_mode(struct mode *mode, void *code);

#ifdef __x86_64__
/* Everything the 32-bit code touches lies below 4 GiB: it is copied there, and rbx leads to its data. */
__asm__(".text\n"
	"enter_other_mode:\n"
	"push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
	"mov %rsp, 8(%rdi)\n mov %rdi, %rbx\n lea 4096(%rdi), %rsp\n"
	"mov $0x2b, %eax\n mov %eax, %ds\n mov %eax, %es\n"
	"pushq $0x23\n push %rsi\n lretq\n"
	"other_mode_start:\n"
	".code32\n"
	"mov $0x11111111, %ecx\n mov $0x22222222, %edx\n mov $0x33333333, %esi\n mov $0x44444444, %edi\n"
	"mov $0x55555555, %ebp\n"
	"1: lock incl (%ebx)\n"
	"cmp $0x11111111, %ecx\n jne 2f\n cmp $0x22222222, %edx\n jne 2f\n cmp $0x33333333, %esi\n jne 2f\n"
	"cmp $0x44444444, %edi\n jne 2f\n cmp $0x55555555, %ebp\n jne 2f\n"
	"cmpl $0, 4(%ebx)\n je 1b\n jmp 3f\n"
	"2: movl $1, 24(%ebx)\n"
	"3: ljmp *16(%ebx)\n"
	"other_mode_back:\n"
	".code64\n"
	"mov %ebx, %ebx\n mov 8(%rbx), %rsp\n"
	"pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
	"other_mode_end:\n");
#else
__asm__(".text\n"
	"enter_other_mode:\n"
	"push %ebx\n push %ebp\n push %esi\n push %edi\n"
	"mov 20(%esp), %edi\n"
	"push $0x33\n call 1f\n"
	"1: addl $2f - 1b, (%esp)\n lret\n"
	"2:\n"
	".code64\n"
	"mov %edi, %edi\n"
	"movabs $0x8888888888888888, %r8\n movabs $0x9999999999999999, %r9\n movabs $0xaaaaaaaaaaaaaaaa, %r10\n"
	"movabs $0xffffffffffffffff, %r15\n movabs $0x1234567812345678, %rcx\n"
	"movabs $0x8888888888888888, %rax\n movabs $0x1234567812345678, %rdx\n"
	"3: lock incl (%rdi)\n"
	"cmp %rax, %r8\n jne 4f\n cmp %rdx, %rcx\n jne 4f\n cmp $-1, %r15\n jne 4f\n"
	"cmpl $0, 4(%rdi)\n je 3b\n jmp 5f\n"
	"4: movl $1, 24(%rdi)\n"
	"5: pushq $0x23\n lea 6f(%rip), %rax\n push %rax\n lretq\n"
	"other_mode_start: other_mode_back: other_mode_end:\n"
	".code32\n"
	"6: pop %edi\n pop %esi\n pop %ebp\n pop %ebx\n ret\n");
#endif

static void *mode_thread(void *argument)
{
	struct mode *mode = argument;
	char *code = (char *)mode + PAGE;
	memcpy(code, other_mode_start, (size_t)(other_mode_end - other_mode_start));
	mode->back = (uint32_t)(uintptr_t)code + (uint32_t)(other_mode_back - other_mode_start);
	mode->selector = 0x33;
	enter_other_mode(mode, code);
	return NULL;
}

CASE(other_mode)
{
	pthread_t thread;
	struct mode *mode = MUST((struct mode *)mmap((void *)0x20000000, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
						     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	MUST0(pthread_create(&thread, NULL, mode_thread, mode));
	while (mode->rounds < 1000)
		sched_yield();
	checkpoint();
	uint32_t rounds = mode->rounds;
	while (mode->rounds - rounds < 1000 && !mode->wrong)
		sched_yield();
	mode->stop = 1;
	MUST0(pthread_join(thread, NULL));
	CHECK(!mode->wrong, "a register changed after %u rounds", mode->rounds);
}
