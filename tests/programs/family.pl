# A Perl parent with two children: one hands it numbers through a pipe, the other turns round what it is
# given, through two. The command `check` answers `ROUNDS WRONG`.
use strict;
use warnings;
use IPC::Open2;

$| = 1;
my $numbers = open(my $source, '-|') // die "fork: $!";
if (!$numbers) {
    my $n = 0;
    while (1) { print $n++ * 7919 % 10007, "\n" }
}
open2(my $back, my $there, 'perl', '-ne', '$| = 1; chomp; print scalar reverse, "\n"');
my ($round, $wrong, %seen, $last) = (0, 0);
$last = '';
while (1) {
    my @taken = map { scalar <$source> } 1 .. 200;
    chomp @taken;
    my $expected = 200 * $round;
    for my $number (@taken) {
        $wrong++ if $number != $expected++ * 7919 % 10007;
        push @{ $seen{ $number % 100 } }, "$round:$number";
        shift @{ $seen{ $number % 100 } } if @{ $seen{ $number % 100 } } > 50;
    }
    print $there map { "$_\n" } @taken;
    chomp(my @back = map { scalar <$back> } @taken);
    $wrong++ if "@back" ne join ' ', map { scalar reverse } @taken;
    $round++;
    if (open my $command, '<', '/scratch/command') {
        my $line = <$command> // '';
        close $command;
        if ($line ne $last && $line =~ /^(\d+) check$/) {
            $last = $line;
            open my $answer, '>', '/scratch/answer.new' or die $!;
            print $answer "$1 $round $wrong\n";
            close $answer;
            rename '/scratch/answer.new', '/scratch/answer' or die $!;
        }
    }
}
