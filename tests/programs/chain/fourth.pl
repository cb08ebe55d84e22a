# The fourth level, a 32-bit Perl started by the 64-bit bash.
use strict;
use warnings;

$| = 1;
open(my $down, '|-', '/host/usr/bin/python3', '-u', '/scratch/chain/fifth.py', 'python64') or die $!;
select((select($down), $| = 1)[0]);
my $count = 0;
while (my $line = <STDIN>) {
    chomp $line;
    $count++;
    print $down "$line $ARGV[0]=$count\n";
}
