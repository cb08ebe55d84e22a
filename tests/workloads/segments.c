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

/* Every kind of segment that modify_ldt makes, thousands of them, most in no register. */
enum { LDT_ENTRIES_MAX = 8192 };

static int read_ldt(uint64_t *table)
{
	return MUST((int)syscall(SYS_modify_ldt, 0, table, LDT_ENTRIES_MAX * sizeof(*table)));
}

static void make_ldt(void)
{
	for (unsigned entry = 7; entry < LDT_ENTRIES_MAX; entry += entry < 300 ? 1 : 3) {
		struct user_desc segment = {
			.entry_number = entry,
			.base_addr = entry * 0x0101f1,
			.limit = entry * 113 & 0xfffff,
			.seg_32bit = entry >> 6 & 1,
			.contents = entry & 3,
			.read_exec_only = entry >> 2 & 1,
			.limit_in_pages = entry >> 3 & 1,
			/* Conforming code is only allowed when it is not present. */
			.seg_not_present = (entry >> 4 & 1) || (entry & 3) == 3,
			.useable = entry >> 5 & 1,
		};
		/* Without CONFIG_X86_16BIT. */
		if (syscall(SYS_modify_ldt, 0x11, &segment, sizeof(segment)) != 0) {
			segment.seg_32bit = 1;
			MUST(syscall(SYS_modify_ldt, 0x11, &segment, sizeof(segment)));
		}
	}
}

static void check_ldt(const uint64_t *before)
{
	uint64_t *after = (uint64_t *)(void *)map_anonymous(LDT_ENTRIES_MAX * sizeof(*after));
	CHECK(read_ldt(after) == LDT_ENTRIES_MAX * 8, "the table is gone");
	for (unsigned entry = 0; entry < LDT_ENTRIES_MAX; entry++)
		CHECK(before[entry] == after[entry], "LDT entry %u is %#llx, was %#llx", entry,
		      (unsigned long long)after[entry], (unsigned long long)before[entry]);
}

/* A child has a copy of its own. */
static void ldt_child(void *table)
{
	struct user_desc segment = { .entry_number = 2, .base_addr = 0x1234, .limit = 5, .seg_32bit = 1 };
	MUST(syscall(SYS_modify_ldt, 0x11, &segment, sizeof(segment)));
	read_ldt(table);
	prepared();
	wait_for_go();
	check_ldt(table);
}

/* Nor is a table without entries the same as none. */
static void empty_ldt_child(void *argument)
{
	uint64_t table = 1;
	struct user_desc segment = { .entry_number = 3, .read_exec_only = 1, .seg_not_present = 1 };
	(void)argument;
	CHECK(syscall(SYS_modify_ldt, 0, &table, sizeof(table)) == 0, "a table from the start");
	MUST(syscall(SYS_modify_ldt, 0x11, &segment, sizeof(segment)));
	prepared();
	wait_for_go();
	CHECK(syscall(SYS_modify_ldt, 0, &table, sizeof(table)) == 8 && table == 0, "the table is gone");
}

CASE(ldt_entries)
{
	pid_t empty = spawn(empty_ldt_child, NULL);
	uint64_t *table = (uint64_t *)(void *)map_anonymous(LDT_ENTRIES_MAX * sizeof(*table));
	make_ldt();
	CHECK(read_ldt(table) == LDT_ENTRIES_MAX * 8, "no table");
	pid_t child = spawn(ldt_child, table);
	checkpoint();
	check_ldt(table);
	finish(child);
	finish(empty);
}
