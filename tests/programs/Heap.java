// Two hundred megabytes of objects in long chains, of which a part is replaced all the time, so that the collector moves the rest. The
// command `check` (see desk.py) answers `BLOCKS WRONG`.

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;

public class Heap {
	static final int BLOCKS = 200 * 1024, BLOCK = 1024;
	static volatile int done, wrong;

	static byte[] block(int number, int turn) {
		byte[] bytes = new byte[BLOCK];
		for (int i = 0; i < BLOCK; i++)
			bytes[i] = (byte) (number * 31 + turn * 17 + i);
		return bytes;
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

	public static void main(String[] args) {
		byte[][] blocks = new byte[BLOCKS][];
		int[] turns = new int[BLOCKS];
		for (int number = 0; number < BLOCKS; number++)
			blocks[number] = block(number, 0);
		Thread listener = new Thread(Heap::listen);
		listener.setDaemon(true);
		listener.start();
		for (int turn = 1;; turn++) {
			int number = (int) (turn * 7919L % BLOCKS);
			if (!java.util.Arrays.equals(blocks[number], block(number, turns[number])))
				wrong++;
			turns[number] = turn;
			blocks[number] = block(number, turn);
			done++;
		}
	}
}
