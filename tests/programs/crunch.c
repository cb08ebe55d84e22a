/* crunch STEPS: threads that keep their numbers in SSE, AVX and x87 registers; prints what came out, bit by
 * bit. The same steps give the same bits in every run of the same build. The step that it is at stands in
 * /scratch/progress. */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { threads = 3, bodies = 8 };
typedef double four __attribute__((vector_size(32)));
typedef float quad __attribute__((vector_size(16)));

struct state {
	four position[bodies], speed[bodies];
	quad wave;
	long double sum;
	uint64_t hash;
};

static long steps;
static struct state states[threads];

/* One step moves every body towards all others; no call leaves the function, so that the values of the
 * inner loops stay in registers. */
#define BODY                                                                                             \
	for (int i = 0; i < bodies; i++) {                                                                   \
		four pull = {0};                                                                                 \
		for (int k = 0; k < bodies; k++) {                                                               \
			four way = s->position[k] - s->position[i];                                                  \
			four square = way * way;                                                                     \
			double distance = square[0] + square[1] + square[2] + 0.5;                                   \
			pull += way * (1e-3 / (distance * distance));                                                \
		}                                                                                                \
		s->speed[i] += pull;                                                                             \
	}                                                                                                    \
	for (int i = 0; i < bodies; i++)                                                                     \
		s->position[i] += s->speed[i];                                                                   \
	s->wave = s->wave * 0.999f + (quad){1e-3f, 2e-3f, 3e-3f, 4e-3f};                                      \
	s->sum += 1.0L / (3.0L + s->sum * s->sum);                                                           \
	s->hash = (s->hash ^ (uint64_t)step) * 1099511628211u;

__attribute__((target("avx"), noinline)) static void run_avx(struct state *s, long from, long to)
{
	for (long step = from; step < to; step++) {
		BODY
	}
}

__attribute__((target("sse2"), noinline)) static void run_sse(struct state *s, long from, long to)
{
	for (long step = from; step < to; step++) {
		BODY
	}
}

static void *crunch(void *which)
{
	struct state *s = which;
	int first = s == states;
	int progress = first ? open("/scratch/progress", O_RDWR | O_CREAT | O_TRUNC, 0644) : -1;
	for (long step = 0; step < steps; step += 1000) {
		if (__builtin_cpu_supports("avx"))
			run_avx(s, step, step + 1000);
		else
			run_sse(s, step, step + 1000);
		char text[16];
		int length = snprintf(text, sizeof text, "%8ld", step / 1000 + 1);
		if (first && pwrite(progress, text, (size_t)length, 0) != length)
			abort();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[threads];
	steps = argc > 1 ? 1000 * atol(argv[1]) : 1000;
	for (int t = 0; t < threads; t++) {
		for (int i = 0; i < bodies; i++) {
			states[t].position[i] = (four){i, t + 1, i * i % 5, 1};
			states[t].speed[i] = (four){0.001 * t, 0.002 * i, 0, 0};
		}
		states[t].hash = 14695981039346656037u;
		pthread_create(&thread[t], NULL, crunch, &states[t]);
	}
	for (int t = 0; t < threads; t++)
		pthread_join(thread[t], NULL);
	for (int t = 0; t < threads; t++) {
		for (int i = 0; i < bodies; i++)
			printf("%a %a %a\n", states[t].position[i][0], states[t].position[i][1], states[t].position[i][2]);
		printf("%a %a %La %016llx\n", (double)states[t].wave[0], (double)states[t].wave[3], states[t].sum,
		       (unsigned long long)states[t].hash);
	}
	return 0;
}
