<?php
// What programs under test answer, by files as in desk.py: `DONE WRONG` to any new command.
function answer(string &$last, int $done, int $wrong): void
{
	$command = @file_get_contents('/scratch/command');
	if ($command === false || $command === $last)
		return;
	$last = $command;
	file_put_contents('/scratch/answer.new', (int) $command . " $done $wrong\n");
	rename('/scratch/answer.new', '/scratch/answer');
}
