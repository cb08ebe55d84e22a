<?php
// A PHP parent that forks short-lived children all the time, each with an exit status to be waited for, and counts the
// alarms of an interval that it sets again in the handler. The command `check` (see desk.php) answers `CHILDREN WRONG`.
require '/scratch/desk.php';
pcntl_async_signals(true);
$alarms = $done = $wrong = 0;
$last = '';
pcntl_signal(SIGALRM, function () use (&$alarms) {
	$alarms++;
	pcntl_alarm(1);
});
pcntl_alarm(1);

for ($round = 0;; $round++) {
	$children = [];
	for ($n = 0; $n < 4; $n++) {
		$pid = pcntl_fork();
		if ($pid === 0) {
			$sum = $n + $round;
			for ($i = 0; $i < 2000; $i++)
				$sum = ($sum * 31 + $i) % 251;
			if ($n === 3)
				posix_kill(posix_getpid(), SIGTERM);
			usleep(3000);
			exit($sum);
		}
		$children[$pid] = $n;
	}
	foreach ($children as $pid => $n) {
		while (($got = pcntl_waitpid($pid, $status)) === -1 && pcntl_get_last_error() === PCNTL_EINTR)
			;
		$sum = $n + $round;
		for ($i = 0; $i < 2000; $i++)
			$sum = ($sum * 31 + $i) % 251;
		$right = $n === 3
			? pcntl_wifsignaled($status) && pcntl_wtermsig($status) === SIGTERM
			: pcntl_wifexited($status) && pcntl_wexitstatus($status) === $sum;
		$done++;
		$wrong += $got !== $pid || !$right;
	}
	answer($last, $done, $wrong);
}
