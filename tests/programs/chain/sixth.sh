# The last level, a 32-bit busybox shell: writes what all six have counted to a file.
exec >>/scratch/counted
while read -r line; do
	count=$((count + 1))
	echo "$line $1=$count"
done
