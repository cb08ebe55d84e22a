# The first level and root of the tree, a 64-bit bash: counts, and sends each number down the chain.
# Its argument is its name in the tree.
exec 4< <(exec sleep infinity) # never readable: a place to wait that starts no process
exec 5> >(exec /usr/bin/python3 -u /scratch/chain/second.py python32)
while :; do
	count=$((count + 1))
	echo "$1=$count" >&5
	read -r -t 0.02 -u 4
done
