<?php
// Workers that take turns by a semaphore of System V. Each writes its name where the others would see it, and the last of a round ends while it
// has the semaphore, so that the kernel gives it back (SEM_UNDO). The command `check` (see desk.php) answers `TURNS WRONG`.
require '/scratch/desk.php';
$semaphore = sem_get(posix_getpid(), 1, 0600, true);
$turns = $wrong = 0;
$last = '';

for ($round = 0;; $round++) {
	$children = [];
	for ($n = 0; $n < 4; $n++) {
		$pid = pcntl_fork();
		if ($pid === 0) {
			$right = sem_acquire($semaphore);
			file_put_contents('/scratch/turn', "$round $n");
			usleep(3000);
			if (!$right || file_get_contents('/scratch/turn') !== "$round $n")
				exit(1);
			if ($n === 3)
				posix_kill(posix_getpid(), SIGKILL);
			exit(sem_release($semaphore) ? 0 : 1);
		}
		$children[$pid] = $n;
	}
	foreach ($children as $pid => $n) {
		$got = pcntl_waitpid($pid, $status);
		$right = $n === 3
			? pcntl_wifsignaled($status) && pcntl_wtermsig($status) === SIGKILL
			: pcntl_wifexited($status) && pcntl_wexitstatus($status) === 0;
		$turns++;
		$wrong += $got !== $pid || !$right;
	}
	answer($last, $turns, $wrong);
}
