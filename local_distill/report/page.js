// The page begins.

charts.start();
heatMap.start();
