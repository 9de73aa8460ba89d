/* DPDK's rte_hash as a contestant of `benches/peers/table/run`, which says what all of them do.
 *
 * rte_hash [--huge] [--core N] CONNECTIONS
 *
 * The mode is RW_CONCURRENCY_LF, lookups are in bulks of 32, the hash is CRC-32C, keys are 16 bytes (for which
 * rte_hash has a comparison of its own). What is stored for a key is its position only; beside the table stand records of one
 * cache line, by position, as DPDK's own examples keep what they know of a flow. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_malloc.h>
#include <rte_prefetch.h>

enum { BURST = 32, BLOCK = 256, ROUNDS = 9 };

struct key {
	uint32_t src, dst;
	uint16_t sport, dport, zone;
	uint8_t proto, zero;
};

/* What is known of a connection. */
struct record {
	uint64_t verdict, other[7];
} __rte_cache_aligned;

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

/* Connection number i. */
static struct key key_of(uint64_t i)
{
	uint64_t x = mix((i + 1) * 0x9e3779b97f4a7c15);
	struct key k = { .src = x >> 32, .dst = 0x0a000001, .sport = (uint16_t)(x >> 16), .dport = (uint16_t)x, .proto = 17 };
	return k;
}

/* Which connection comes next, of n from the first. */
static uint64_t next_of(uint64_t *state, uint64_t n)
{
	*state += 0x9e3779b97f4a7c15;
	return (uint64_t)(((unsigned __int128)mix(*state ^ 0x2545f4914f6cdd1d) * n) >> 64);
}

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static void die(const char *what)
{
	fprintf(stderr, "rte_hash: %s\n", what);
	exit(1);
}

/* Nanoseconds a key of looking up n connections from number first, of which all or none are there; with records, the verdicts
 * of a bulk are read as well, having been asked for together. */
static double lookups(const struct rte_hash *h, const struct record *records, uint64_t first, uint64_t n, uint64_t per_round,
		      int there)
{
	double ns[ROUNDS];
	uint64_t state = 1, hits = 0, sum = 0;
	for (int round = 0; round < ROUNDS; round++) {
		double spent = 0;
		for (uint64_t done = 0; done < per_round; done += BLOCK) {
			struct key keys[BLOCK];
			const void *at[BLOCK];
			for (int i = 0; i < BLOCK; i++) {
				keys[i] = key_of(first + next_of(&state, n));
				at[i] = &keys[i];
			}
			double start = now_ns();
			for (int burst = 0; burst < BLOCK; burst += BURST) {
				int32_t positions[BURST];
				rte_hash_lookup_bulk(h, at + burst, BURST, positions);
				for (int i = 0; i < BURST; i++) {
					hits += positions[i] >= 0;
					sum += (uint32_t)positions[i];
					if (records && positions[i] >= 0)
						rte_prefetch0(&records[positions[i]]);
				}
				for (int i = 0; records && i < BURST; i++)
					if (positions[i] >= 0)
						sum += records[positions[i]].verdict;
			}
			spent += now_ns() - start;
		}
		ns[round] = spent / per_round;
	}
	if (hits != (there ? ROUNDS * per_round : 0))
		die("a lookup was wrong");
	__asm__ volatile("" : : "r"(sum));
	qsort(ns, ROUNDS, sizeof(ns[0]), by_value);
	return ns[ROUNDS / 2];
}

/* Nanoseconds a key of one lookup after another. */
static double singles(const struct rte_hash *h, uint64_t n, uint64_t per_round)
{
	double ns[ROUNDS];
	uint64_t state = 1, hits = 0;
	for (int round = 0; round < ROUNDS; round++) {
		double spent = 0;
		for (uint64_t done = 0; done < per_round; done += BLOCK) {
			struct key keys[BLOCK];
			for (int i = 0; i < BLOCK; i++)
				keys[i] = key_of(next_of(&state, n));
			double start = now_ns();
			for (int i = 0; i < BLOCK; i++)
				hits += rte_hash_lookup(h, &keys[i]) >= 0;
			spent += now_ns() - start;
		}
		ns[round] = spent / per_round;
	}
	if (hits != ROUNDS * per_round)
		die("a lookup was wrong");
	qsort(ns, ROUNDS, sizeof(ns[0]), by_value);
	return ns[ROUNDS / 2];
}

/* Nanoseconds of inserting the first n connections, having looked for them in bulk first if so asked. */
static double inserts(struct rte_hash *h, uint64_t n, int look_first)
{
	double spent = 0;
	for (uint64_t done = 0; done < n; done += BLOCK) {
		struct key keys[BLOCK];
		uint64_t len = n - done < BLOCK ? n - done : BLOCK;
		for (uint64_t i = 0; i < len; i++)
			keys[i] = key_of(done + i);
		double start = now_ns();
		for (uint64_t burst = 0; burst < len; burst += BURST) {
			uint64_t end = burst + BURST < len ? burst + BURST : len;
			if (look_first) {
				const void *at[BURST];
				int32_t positions[BURST];
				for (uint64_t i = burst; i < end; i++)
					at[i - burst] = &keys[i];
				rte_hash_lookup_bulk(h, at, end - burst, positions);
				for (uint64_t i = burst; i < end; i++)
					if (positions[i - burst] >= 0)
						die("a lookup was wrong");
			}
			for (uint64_t i = burst; i < end; i++)
				if (rte_hash_add_key(h, &keys[i]) < 0)
					die("no room");
		}
		spent += now_ns() - start;
	}
	return spent / n;
}

int main(int argc, char **argv)
{
	int huge = 0;
	const char *core = "0";
	uint64_t n = 0;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--huge"))
			huge = 1;
		else if (!strcmp(argv[i], "--core") && i + 1 < argc)
			core = argv[++i];
		else
			n = strtoull(argv[i], NULL, 10);
	}
	if (n == 0)
		die("say how many connections");
	char lcores[32];
	snprintf(lcores, sizeof(lcores), "0@%s", core);
	char *eal[] = { argv[0], "--lcores", lcores, "--no-pci", "--no-telemetry", "--log-level=error",
			huge ? "--in-memory" : "--no-shconf", "--no-huge", "-m", "3072" };
	/* With huge pages memory is taken as needed; without them all of it is reserved at the start, and touched when used. */
	if (rte_eal_init(huge ? 7 : 10, eal) < 0)
		die("DPDK's environment did not start; with --huge: are there huge pages (sysctl vm.nr_hugepages)?");
	struct rte_hash_parameters parameters = {
		.name = "bench",
		.entries = n + n / 8,
		.key_len = sizeof(struct key),
		.hash_func = rte_hash_crc,
		.hash_func_init_val = 0x5eed,
		.socket_id = SOCKET_ID_ANY,
		.extra_flag = RTE_HASH_EXTRA_FLAGS_RW_CONCURRENCY_LF,
	};
	struct rte_hash *h = rte_hash_create(&parameters);
	if (h == NULL)
		die("the table could not be made; with --huge: too few huge pages?");
	inserts(h, n, 0);
	rte_hash_reset(h);
	double open = inserts(h, n, 1);
	rte_hash_reset(h);
	double insert = inserts(h, n, 0);
	uint64_t per_round = n < (1 << 18) ? 1 << 18 : 1 << 19;
	lookups(h, NULL, 0, n, per_round / 4, 1);
	double hit = lookups(h, NULL, 0, n, per_round, 1);
	double miss = lookups(h, NULL, n, n, per_round, 0);
	double single = singles(h, n, per_round / 4);
	struct record *records = rte_zmalloc("records", (rte_hash_max_key_id(h) + 1) * sizeof(*records), RTE_CACHE_LINE_SIZE);
	if (records == NULL)
		die("no memory for the records; with --huge: too few huge pages?");
	for (int32_t i = 0; i <= rte_hash_max_key_id(h); i++)
		records[i].verdict = 1;
	lookups(h, records, 0, n, per_round / 4, 1);
	double verdict = lookups(h, records, 0, n, per_round, 1);
	printf("{\"contestant\":\"rte_hash\",\"connections\":%" PRIu64 ",\"hit_ns\":%.2f,\"miss_ns\":%.2f,"
	       "\"single_ns\":%.2f,\"verdict_ns\":%.2f,\"insert_ns\":%.2f,\"open_ns\":%.2f}\n",
	       n, hit, miss, single, verdict, insert, open);
	return 0;
}
