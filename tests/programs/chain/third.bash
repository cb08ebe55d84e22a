# The third level, a 64-bit bash started by the 32-bit Python.
exec 5> >(exec /usr/bin/perl /scratch/chain/fourth.pl perl32)
while read -r line; do
	count=$((count + 1))
	echo "$line $1=$count" >&5
done
