// Six threads of a pool compute while the JIT compilers and the garbage collector work beside them; numbers live in
// long, double and boxed objects that move. The command `check` (see desk.py) answers `JOBS WRONG`.

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;

public class Numbers {
	static final int WORKERS = 6, AHEAD = 12;
	static final AtomicInteger done = new AtomicInteger(), wrong = new AtomicInteger();

	/** A sum of a walk that is the same for all jobs of a number modulo 64, so that it is known after the first. */
	static long job(int number) {
		long state = number % 64 * 2654435761L + 1;
		double mean = 0;
		Map<Integer, List<Long>> seen = new HashMap<>();
		for (int i = 0; i < 3000; i++) {
			state ^= state << 13;
			state ^= state >>> 7;
			state ^= state << 17;
			mean = mean * 0.99 + (state & 0xff);
			seen.computeIfAbsent((int) (state & 63), key -> new ArrayList<>()).add(state);
		}
		long sum = Double.doubleToLongBits(mean);
		for (int key = 0; key < 64; key++)
			for (long value : seen.getOrDefault(key, List.of()))
				sum = sum * 31 + value;
		return sum;
	}

	static void listen() {
		String last = "";
		while (true) {
			try {
				Thread.sleep(5);
				String command = Files.readString(Path.of("/scratch/command")).trim();
				if (command.equals(last))
					continue;
				last = command;
				String number = command.split(" ")[0];
				Files.writeString(Path.of("/scratch/answer.new"), number + " " + done + " " + wrong + "\n");
				Files.move(Path.of("/scratch/answer.new"), Path.of("/scratch/answer"),
						StandardCopyOption.ATOMIC_MOVE);
			} catch (NoSuchFileException notYet) {
				// The first command is still to come.
			} catch (IOException | InterruptedException error) {
				error.printStackTrace();
				System.exit(1);
			}
		}
	}

	public static void main(String[] args) throws Exception {
		long[] expected = new long[64];
		for (int number = 0; number < 64; number++)
			expected[number] = job(number);
		Thread listener = new Thread(Numbers::listen);
		listener.setDaemon(true);
		listener.start();
		ExecutorService pool = Executors.newFixedThreadPool(WORKERS);
		ArrayDeque<Future<Long>> running = new ArrayDeque<>();
		for (int sent = 0;; sent++) {
			int number = sent;
			running.add(pool.submit(() -> job(number)));
			if (running.size() < AHEAD)
				continue;
			long result = running.remove().get();
			if (result != expected[(sent - AHEAD + 1) % 64])
				wrong.incrementAndGet();
			done.incrementAndGet();
		}
	}
}
